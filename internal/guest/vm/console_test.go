package vm

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/progress"
)

type activities struct {
	progress.Reporter
	mu  sync.Mutex
	all []string
}

func (a *activities) Activity(s string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, s)
}

func TestThePhasesOfABootAreNamedOnceAndInOrder(t *testing.T) {
	t.Parallel()
	a := &activities{Reporter: progress.Discard}
	c := newConsole(a)
	for _, part := range []string{
		"Welcome to GRUB!\r\n\x1b[H\x1b[J  Booting `Debian'\r\n\r\n", "[    0.000000] Linux ver", "sion 6.1.0 (gcc)\r\n[    3.0] Run /init as init process\n",
		"[    5.3] systemd[1]: Detected virtualization qemu.\n", "[    6.0] Linux version of something else\n",
		"[   14.2] cloud-init[321]: Cloud-init v. 22.4.2 running 'init'\n", "\nDebian GNU/Linux 12 probe ttyS0\n\nprobe login: ",
	} {
		_, _ = c.Write([]byte(part))
	}
	assert.Equal(t, []string{"boot: BIOS", "boot: boot loader", "boot: kernel", "boot: initial ramdisk", "boot: systemd", "boot: cloud-init", "boot: login"}, a.all)
	last := c.Last()
	assert.Equal(t, []string{"Welcome to GRUB!", "  Booting `Debian'"}, last[:2])
	assert.Equal(t, "probe login:", last[len(last)-1])
}

func TestABootThatDiesIsKnownFromItsConsole(t *testing.T) {
	t.Parallel()
	for line, what := range map[string]string{
		"[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)": "the guest's kernel panicked",
		"error: no such device: 6469736b-666f-4267-8000-000000000012.":                             "the guest's boot loader does not find its files",
		"(initramfs) ": "the guest's kernel does not find its root file system",
	} {
		c := newConsole(progress.Discard)
		_, _ = c.Write([]byte("before\n" + line)) // a prompt has no end of line
		require.Len(t, c.died, 1, line)
		assert.Equal(t, what, <-c.died)
		_, _ = c.Write([]byte("\n" + line + "\n"))
		assert.Empty(t, c.died, "said twice")
	}
}

func TestAKernelThatHangsIsKnownWhenItSaysSoAgainAndAgain(t *testing.T) {
	t.Parallel()
	c := newConsole(progress.Discard)
	for _, stuck := range []string{"45", "71", "105", "131"} {
		line := "[   84.5] watchdog: BUG: soft lockup - CPU#0 stuck for " + stuck + "s! [modprobe:202]"
		for _, part := range []string{line[:60], line[60:], "\r\n[   84.5] RIP: 0010:sk_filter_trim_cap+0x36/0x250\r\n"} {
			_, _ = c.Write([]byte(part))
		}
	}
	assert.Empty(t, c.died, "a host that was asleep makes a guest say so, too")
	_, _ = c.Write([]byte("watchdog: BUG: soft lockup - CPU#0 stuck for 164s! [modprobe:202]\n"))
	require.Len(t, c.died, 1)
	assert.Equal(t, Hangs, <-c.died)
}

func FuzzAnyConsoleIsSafeToPrint(f *testing.F) {
	f.Add([]byte("plain\r\n\x1b[31mred\x1b[0m \x1b]0;title\x07\x9b2J\u202e"))
	f.Add([]byte("\xff\xfe\x00 Linux version \n(initramfs) "))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newConsole(progress.Discard)
		n, err := c.Write(b)
		require.NoError(t, err)
		require.Equal(t, len(b), n)
		lines := c.Last()
		require.LessOrEqual(t, len(lines), maxLines+1)
		for _, l := range lines {
			for _, r := range l {
				require.False(t, r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0, "%q", l)
			}
		}
	})
}

func TestTheEndOfALogIsReadWithoutItsBeginning(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "log")
	long := make([]byte, maxTail)
	for i := range long {
		long[i] = "x\n"[i%2]
	}
	require.NoError(t, os.WriteFile(file, append(long, "\x1b[1mlast but one\nlast"...), 0o600))
	assert.Equal(t, []string{"last but one", "last"}, LastLines(file, 2))
	assert.Empty(t, LastLines(filepath.Join(t.TempDir(), "missing"), 2))
}

func TestEachPhaseHasTheMomentInWhichItBegan(t *testing.T) {
	t.Parallel()
	c := newConsole(progress.Discard)
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c.seen, c.now = []Moment{{"BIOS", start}}, func() time.Time { start = start.Add(time.Second); return start }
	for _, part := range []string{"SeaBIOS\n", "Linux version 6.1\n", "noise\n", "Linux version 6.1\n", "probe login: ", "cloud-init[1]: late\n"} {
		_, _ = c.Write([]byte(part))
	}
	var got []string
	for _, m := range c.Moments() {
		got = append(got, m.Phase+" "+m.At.Format("05"))
	}
	assert.Equal(t, []string{"BIOS 00", "kernel 01", "login 02"}, got)
}
