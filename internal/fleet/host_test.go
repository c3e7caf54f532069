package fleet

import (
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestThisHostHasProcessorsMemoryAndSpace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := hostCapacity(dir)
	require.NoError(t, err)
	assert.Positive(t, c.CPUs)
	assert.Positive(t, c.MemoryMiB)
	assert.Equal(t, dir, c.Dir)
	assert.Positive(t, c.Free)
}

func TestADirectoryThatIsNotThereIsNamed(t *testing.T) {
	t.Parallel()
	_, err := hostCapacity(filepath.Join(t.TempDir(), "nowhere"))
	assert.ErrorContains(t, err, "nowhere: no such file or directory")
}

func TestMemoryIsWhatTheTightestControlGroupLeaves(t *testing.T) {
	t.Parallel()
	const group = "sys/fs/cgroup/pod/container/"
	for name, c := range map[string]struct {
		files map[string]string
		want  int
	}{
		"no groups":       {nil, 8192},
		"no limit":        {map[string]string{group + "memory.max": "max\n"}, 8192},
		"a loose limit":   {map[string]string{group + "memory.max": "99999999999\n", group + "memory.current": "0\n"}, 8192},
		"a limit":         {map[string]string{group + "memory.max": "1073741824\n", group + "memory.current": "536870912\n"}, 512},
		"files in memory": {map[string]string{group + "memory.max": "1073741824\n", group + "memory.current": "536870912\n", group + "memory.stat": "anon 1\ninactive_file 268435456\n"}, 768},
		"a limit above":   {map[string]string{"sys/fs/cgroup/pod/memory.max": "1073741824\n", "sys/fs/cgroup/pod/memory.current": "0\n"}, 1024},
		"all used":        {map[string]string{group + "memory.max": "1073741824\n", group + "memory.current": "2073741824\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{
				"proc/meminfo":     {Data: []byte("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")},
				"proc/self/cgroup": {Data: []byte("4:memory:/elsewhere\n0::/pod/container\n")},
			}
			for name, text := range c.files {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
			got, err := availableMemory(root)
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

func TestMemoryThatTheKernelDoesNotTellIsAnError(t *testing.T) {
	t.Parallel()
	_, err := availableMemory(fstest.MapFS{"proc/meminfo": {Data: []byte("MemTotal: 1 kB\n")}})
	assert.ErrorContains(t, err, "there is no MemAvailable:")
}
