package catalogue_test

import (
	"fmt"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
)

func ExampleParse() {
	c, err := catalogue.Parse("catalogue.yaml", "/labs", []byte(`
defaults: {playbook: debian-base}
images:
  - {name: "debian-{release}", matrix: {release: [bookworm, trixie]}, base: {packages: "{release}"}}
  - {name: databases, from: debian-trixie, playbook: databases}
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, image := range c.Images {
		fmt.Println(image.Name, image.Settings["ANSIBLE_PLAYBOOK"])
	}
	// Output:
	// debian-bookworm debian-base
	// debian-trixie debian-base
	// databases databases
}
