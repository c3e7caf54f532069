package base

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/netgroup-polito/diskforge/internal/host"
)

// newest are folders that publishers fill anew with each release: Debian's latest,
// Ubuntu's current and release.
var newest = []string{"latest", "current", "release"}

var (
	// serial is the line of Ubuntu's build-info.txt that names the release: 20260722.
	serial = regexp.MustCompile(`(?m)^serial=([0-9][0-9A-Za-z.-]{0,30})\r?$`)
	// version is the form of Debian's: 20260712-2537.
	version = regexp.MustCompile(`^[0-9][0-9A-Za-z.-]{0,30}$`)
)

// patience is how long a server may take for what is only noted.
const patience = 10 * time.Second

// release is which release the file is of, where its URL names the newest: by its
// publisher's own name or, where that is not to be had, by the date of the list. It is
// for people who look for it later, and changes nothing that is built.
func (c *client) release(ctx context.Context, file source, list []byte, changed string) string {
	if file.url == nil || !slices.ContainsFunc(strings.Split(file.url.Path, "/"), func(folder string) bool { return slices.Contains(newest, folder) }) {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// Debian describes the image in a file beside it, which is in the list, too.
	description := strings.TrimSuffix(file.name, path.Ext(file.name)) + ".json"
	found := ""
	if sum, err := parseList(list, description); err == nil {
		found = debianVersion(c.look(ctx, file, description), sum)
	} else if m := serial.FindSubmatch(c.look(ctx, file, "unpacked/build-info.txt")); m != nil {
		found = string(m[1])
	}
	if date, err := http.ParseTime(changed); err == nil && found == "" {
		found = date.UTC().Format(time.DateOnly)
	}
	return found
}

// debianVersion reads the description of an image (debian-cloud-images calls it build
// manifest), or nothing where it is not the one of the list.
func debianVersion(description []byte, sum string) string {
	var list struct {
		Items []struct {
			Metadata struct{ Labels map[string]string }
		}
	}
	same := sum == fmt.Sprintf("sha512:%x", sha512.Sum512(description)) || sum == fmt.Sprintf("sha256:%x", sha256.Sum256(description))
	if same && json.Unmarshal(description, &list) == nil {
		for _, item := range list.Items {
			if v := item.Metadata.Labels["cloud.debian.org/version"]; version.MatchString(v) {
				return v
			}
		}
	}
	return ""
}

// look returns what the server has beside the file by that name, or nothing.
func (c *client) look(ctx context.Context, file source, name string) []byte {
	resp, err := get(ctx, c.http, file.url.JoinPath("..", name).String(), nil)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	content, err := host.ReadAll(resp.Body, maxList)
	if err != nil {
		return nil
	}
	return content
}
