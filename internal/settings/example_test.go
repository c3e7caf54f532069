package settings_test

import (
	"fmt"

	"github.com/netgroup-polito/diskforge/internal/settings"
)

func ExampleParse() {
	environ := map[string]string{"BASE_FROM_PACKAGES": "true", "ANSIBLE_PLAYBOOK": "debian-base", "DISK_SIZE": "20G"}
	given, err := settings.Read(map[string]string{"MEMORY": "4096"}, func(name string) (string, bool) {
		text, ok := environ[name]
		return text, ok
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	config, err := settings.Parse(given)
	fmt.Println(config.MemoryMiB, config.DiskSize, err)
	fmt.Println(given.Arguments("sparsify"), given.Arguments("verify"))

	_, err = settings.Parse(settings.Settings{"MEMORY": "lots", "DISK_SIZE": "none"})
	fmt.Println(err)
	// Output:
	// 4096 21474836480 <nil>
	// [] [--ansible-playbook=debian-base --memory=4096]
	// MEMORY: "lots" is no amount of memory: give a number of MiB, e.g. 2048
	// DISK_SIZE: "none" is no size: give e.g. 10G, 10Gi or 10240M
}
