package deploy_test

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/cli"
)

// documents are what people read: the README and docs/.
func documents(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, pages)
	return append(pages, "../README.md")
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]*)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the names that GitHub gives to a page's headings.
func anchors(text string) (all []string) {
	for _, h := range heading.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return all
}

func TestEveryLinkOfTheDocumentsLeadsSomewhere(t *testing.T) {
	checked := 0
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := name
			if file != "" {
				target = filepath.Join(filepath.Dir(name), file)
			}
			linked, err := os.ReadFile(target)
			if info, errStat := os.Stat(target); errStat == nil && info.IsDir() {
				err = nil
			}
			if assert.NoError(t, err, "%s: %s", name, m[1]) && anchor != "" {
				assert.Contains(t, anchors(string(linked)), anchor, "%s: %s", name, m[1])
			}
			checked++
		}
	}
	assert.Greater(t, checked, 20)
}

func TestTheREADMEIsShort(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	assert.LessOrEqual(t, strings.Count(string(text), "\n"), 120)
}

// Its command has the flags that it is given.
func TestTheCronJobOfTheDocumentsIsOne(t *testing.T) {
	text, err := os.ReadFile("../docs/registries.md")
	require.NoError(t, err)
	_, yamls, _ := strings.Cut(string(text), "```yaml\n")
	document, _, _ := strings.Cut(yamls, "```")
	var job struct {
		Kind string
		Spec struct {
			JobTemplate struct {
				Spec struct {
					BackoffLimit *int `yaml:"backoffLimit"`
					Template     struct {
						Spec struct {
							Containers []struct{ Command []string }
						}
					}
				}
			} `yaml:"jobTemplate"`
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(document), &job))
	require.Equal(t, "CronJob", job.Kind)
	require.Zero(t, *job.Spec.JobTemplate.Spec.BackoffLimit)
	command := job.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Command
	require.Equal(t, "diskforge", command[0])
	var errs strings.Builder
	assert.Zero(t, cli.Main(append(command[1:], "--help"), io.Discard, &errs), errs.String())
}
