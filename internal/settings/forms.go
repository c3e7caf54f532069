package settings

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/arch"
	"github.com/netgroup-polito/diskforge/internal/host"
)

// form checks the text of one setting and returns it as its Go type is read
// from. Errors follow the setting's name and a colon.
type form func(text string) (string, error)

// forms are those that the table names.
var forms = map[string]form{
	"architecture": architecture, "cpus": cpus, "memory": memory, "size": size, "path": filepath.Abs, "certificates": certificates,
	"file": file, "file or pipe": fileOrPipe, "key": key, "folder": Folder, "vars": vars, "vaults": vaults,
	"packages": list(packageForm, "%q is no package's name: give names separated by commas, e.g. octave,gnuplot-nox"),
	"groups":   list(userForm, "%q cannot be the name of a group: give names separated by commas, e.g. docker,wireshark"),
	"keyboard": list(layoutForm, "%q is no keyboard layout: give names of XKB separated by commas, e.g. it or us,de"),
	"outputs":  list(outputForm, "%q is no output: give names separated by commas, e.g. containerdisk,qcow2"),
	"digest": func(v string) (string, error) {
		return v, unless(host.ValidDigest(v), "%q is no digest: give sha256: and 64 hexadecimal digits", v)
	},
	"epoch": func(v string) (string, error) {
		_, err := strconv.ParseInt(v, 10, 64)
		return v, unless(err == nil, "%q is no number of seconds: give e.g. 1764374400, or leave it out", v)
	},
	"http": func(v string) (string, error) { // not quoted: proxies carry passwords
		return v, unless(urlForm.MatchString(v), "is no http(s) URL: give e.g. http://host:3128")
	},
	"user": func(v string) (string, error) {
		return v, unless(userForm.MatchString(v) && v != "root", "%q cannot be a login name: give lower-case letters, digits, - and _, at most 32", v)
	},
}

var (
	// packageForm is Debian's rule for names (policy, 5.6.1).
	packageForm = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

	// layoutForm is that of XKB's layouts (xkeyboard-config's rules/base.lst).
	layoutForm = regexp.MustCompile(`^[a-z]{2,16}$`)

	// outputForm is that of what image/disk writes, which says what there is.
	outputForm = regexp.MustCompile(`^[a-z0-9.]+$`)

	urlForm = regexp.MustCompile(`^https?://[^\s'"\\]+$`)
	// userForm is useradd's own rule (NAME_REGEX of shadow), with its 32 characters.
	userForm = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
)

// formOf is the form of a field of the table.
func formOf(sf reflect.StructField) form {
	name := sf.Tag.Get("form")
	switch named, known := forms[name]; {
	case known:
		return named
	case name != "":
		values := strings.Split(name, "|")
		return func(v string) (string, error) {
			return v, unless(slices.Contains(values, v), "%q is not known: give %s", v, strings.Join(values, ", "))
		}
	case sf.Type.Kind() == reflect.Bool:
		return boolean
	case sf.Type == reflect.TypeFor[time.Duration]():
		return duration
	}
	return func(v string) (string, error) { return v, nil }
}

// list is of names separated by commas or blanks, which it makes commas.
func list(name *regexp.Regexp, otherwise string) form {
	return func(v string) (string, error) {
		names := strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' })
		for _, n := range names {
			if !name.MatchString(n) {
				return "", fmt.Errorf(otherwise, n)
			}
		}
		return strings.Join(names, ","), unless(len(names) > 0, otherwise, v)
	}
}

// unless is an error where the condition does not hold.
func unless(holds bool, format string, args ...any) error {
	if holds {
		return nil
	}
	return fmt.Errorf(format, args...)
}

func boolean(v string) (string, error) {
	_, err := strconv.ParseBool(v)
	return v, unless(err == nil, "%q is neither true nor false: give true or false", v)
}

func duration(v string) (string, error) {
	d, err := time.ParseDuration(v)
	return v, unless(err == nil && d > 0, "%q is no duration: give e.g. 90s or 15m", v)
}

func architecture(v string) (string, error) {
	known := arch.Known(v)
	return known, unless(slices.Contains(arch.Names(), known), "%q cannot be built: give %s", v, strings.Join(arch.Names(), " or "))
}

func cpus(v string) (string, error) {
	n, err := strconv.Atoi(v)
	return strconv.Itoa(n), unless(err == nil && n >= 1 && n <= 64, "%q is no number of processors: give 1 to 64", v)
}

const (
	mib = 1 << 20
	gib = 1 << 30

	minMemoryMiB = 256        // less does not boot a cloud image
	maxMemoryMiB = 1 << 20    // 1 TiB: beyond it is a slip of the keyboard
	minDiskSize  = 1 * gib    // a cloud image's least
	maxDiskSize  = 2048 * gib // KubeVirt's templates stay far below
)

// memory is a number of MiB.
func memory(v string) (string, error) {
	n, err := ParseSize(v)
	if err != nil {
		return "", fmt.Errorf("%q is no amount of memory: give a number of MiB, e.g. 2048", v)
	}
	n /= mib
	return strconv.FormatInt(n, 10), unless(n >= minMemoryMiB && n <= maxMemoryMiB, "%s is out of range: give %d to %d MiB", v, minMemoryMiB, maxMemoryMiB)
}

// size is a disk's, in bytes.
func size(v string) (string, error) {
	n, err := ParseSize(v) // as Packer reads its disk_size
	if bytes, _ := strconv.ParseInt(v, 10, 64); bytes >= minDiskSize {
		n = bytes // no disk has so many MiB
	}
	switch {
	case err != nil:
		return "", err
	case n < minDiskSize || n > maxDiskSize:
		return "", fmt.Errorf("%s is out of range: give %dG to %dG", v, minDiskSize/gib, maxDiskSize/gib)
	}
	return strconv.FormatInt(n, 10), unless(n%512 == 0, "%s is no multiple of 512 bytes: give e.g. 10G", v)
}

var sizeForm = regexp.MustCompile(`(?i)^([0-9]{1,12})(Ki?|Mi?|Gi?|Ti?|)B?$`)

// ParseSize reads a size in bytes: 10G, 10g and 10Gi are GiB, 10240M and a bare
// number are MiB. Letters mean powers of 1024, as qemu-img's do.
func ParseSize(v string) (int64, error) {
	m := sizeForm.FindStringSubmatch(v)
	if m == nil {
		return 0, fmt.Errorf("%q is no size: give e.g. 10G, 10Gi or 10240M", v)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no size: %w", v, err)
	}
	unit := int64(mib)
	if m[2] != "" {
		unit = 1 << (10 * (1 + strings.IndexByte("KMGT", strings.ToUpper(m[2])[0])))
	}
	if n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is larger than any disk", v)
	}
	return n * unit, nil
}

var ageForm = regexp.MustCompile(`^([0-9]{1,6})(m|h|d|w)$`)

// ParseAge reads how long ago something may have happened: 30d, 12h, 2w. A day
// has 24 hours. There is no m: what was meant as months would be minutes, and
// images that are to stay would go.
func ParseAge(v string) (time.Duration, error) {
	m := ageForm.FindStringSubmatch(v)
	switch {
	case m == nil:
		return 0, fmt.Errorf("%q is no age: give e.g. 7d, 12h or 2w", v)
	case m[2] == "m":
		return 0, fmt.Errorf("%q could be minutes or months: give 12h, 7d or 26w", v)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0, fmt.Errorf("%q is no age: %w", v, err)
	}
	const day = 24 * time.Hour
	unit := map[string]time.Duration{"h": time.Hour, "d": day, "w": 7 * day}[m[2]]
	if n > int(math.MaxInt64/unit) {
		return 0, fmt.Errorf("%q is older than any image", v)
	}
	return time.Duration(n) * unit, nil
}

// maxFile bounds the files that settings name, in bytes.
const maxFile = 16 << 20

// Those that name what must be there return its absolute path.

// Folder is the form of a folder.
func Folder(v string) (string, error) { return existing(v, "a folder", fs.ModeDir) }

// file is one that may be read more than once, so a pipe is none.
func file(v string) (string, error) { return existing(v, "a file", 0) }

// key is a private key's file, or a program's reference.
func key(v string) (string, error) {
	if Kept(v) {
		return v, nil
	}
	return file(v)
}

// Kept says whether a key is one that a program keeps: NAME://KEY.
func Kept(key string) bool { return strings.Contains(key, "://") }

func fileOrPipe(v string) (string, error) { return existing(v, "a file", 0, fs.ModeNamedPipe) }

func existing(v, what string, kinds ...fs.FileMode) (string, error) {
	// Somebody who stores a key as a secret of their CI may give the key itself.
	if strings.ContainsAny(v, "\r\n") || strings.Contains(v, "-----BEGIN") {
		return "", errors.New("is the text of a file, where its path should stand: write it into a file and name that")
	}
	info, err := os.Stat(v)
	switch {
	case err != nil:
		return v, err
	case !slices.Contains(kinds, info.Mode().Type()):
		return v, fmt.Errorf("%s is not %s", v, what)
	case !info.IsDir() && info.Size() > maxFile:
		return v, fmt.Errorf("%s has more than %d MiB", v, maxFile>>20)
	}
	return filepath.Abs(v)
}

func certificates(v string) (string, error) {
	path, err := file(v)
	if err != nil {
		return path, err
	}
	pem, err := host.ReadFile(path, maxFile)
	if err != nil {
		return path, err
	}
	return path, unless(x509.NewCertPool().AppendCertsFromPEM(pem), "%s has no certificate in it: give certificates in PEM", v)
}

// vaults are the labels of Ansible's vaults with their passwords' files.
func vaults(v string) (string, error) {
	var all []string
	var wrong []error
	for one := range strings.SplitSeq(v, ",") {
		label, name, labelled := strings.Cut(strings.TrimSpace(one), "@")
		if !labelled {
			label, name = "", label
		}
		if name == "" || name == "prompt" {
			return v, fmt.Errorf("%q asks for a password, and nobody can type one: give LABEL@FILE", one)
		}
		path, err := file(name)
		all, wrong = append(all, strings.TrimPrefix(label+"@"+path, "@")), append(wrong, err)
	}
	return strings.Join(all, ","), errors.Join(wrong...)
}
