package render

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/fleet/catalogue"
)

const gib = 1 << 30

// Kubernetes writes a stream of Jobs, the template (deploy.Job) filled in for
// each image that is built, parents first. A child starts from the registry's
// image of its parent's inputs: a container before the one that builds waits
// until that is there and fetches it, with the login of pullSecret where that
// is not empty, a secret with username and password. No playbook runs where a
// password is. Images that no pod can build are an error, a line for each reason, and
// nothing is written.
func Kubernetes(w io.Writer, template []byte, entries []Entry, t Target, pullSecret string) error {
	var parsed yaml.Node
	if err := yaml.Unmarshal(template, &parsed); err != nil {
		return fmt.Errorf("the Job's template: %w", err)
	}
	if err := t.Check(); err != nil {
		return err
	}
	build, byName := builds(entries)
	bad := refusals{all: len(build)}
	for _, e := range build {
		bad.address(e, byName[e.From])
		bad.pod(e)
	}
	if err := bad.err(); err != nil {
		return err
	}
	if len(build) == 0 {
		_, err := io.WriteString(w, "# "+Summary(entries)+"\n")
		return err
	}
	plain := unalias(parsed.Content[0])
	waits := make(map[string]int, len(build))
	for i, e := range build {
		if n, ok := waits[e.From]; ok {
			waits[e.Name] = n + 1
		} else {
			waits[e.Name] = 0
		}
		j := job{root: unalias(plain)}
		j.fill(e, byName[e.From], t)
		j.wait(e, waits[e.Name], t, pullSecret)
		j.trust(t.CA)
		if j.err != nil {
			return j.err
		}
		if err := j.write(w, i > 0); err != nil {
			return err
		}
	}
	return nil
}

// write writes a document, by an encoder of its own: an encoder keeps what it
// has written.
func (j *job) write(w io.Writer, further bool) error {
	if further {
		if _, err := io.WriteString(w, "---\n"); err != nil {
			return err
		}
	}
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(j.root); err != nil {
		return err
	}
	return e.Close()
}

// pod tells of what does not work in the Job's pod.
func (r *refusals) pod(e Entry) {
	r.files(e, "a pod")
	if e.Settings["BASE_FROM_PACKAGES"] == "true" {
		r.add(e, "a base from packages takes user namespaces, which a restricted pod has not", "give base url and checksum, or push the base with another image")
	}
	if e.Settings["ANSIBLE_DIR"] != "" {
		r.add(e, "ansible-dir names a folder, which a pod has not", "use git")
	}
}

// job is one rendering of the template. The first part that the template lacks
// is in err.
type job struct {
	root *yaml.Node
	err  error
}

func (j *job) fill(e, parent Entry, t Target) {
	pod := j.at(j.root, "spec", "template", "spec")
	build := j.at(pod, "initContainers", "0")
	push := j.at(pod, "containers", "0")
	if j.err != nil {
		return
	}
	env := t.settings(e)
	address := map[string]string{"TARGET_REGISTRY": t.Registry, "REGISTRY_PREFIX": t.Prefix, "IMAGE_NAME": e.Name, "IMAGE_TAG": e.Tags[0]}
	maps.Copy(env, address)
	if e.From != "" {
		env["ISO_URL"], env["ISO_CHECKSUM"] = t.from(parent)
	}
	j.size(pod, build, e, env)
	if env["ACCELERATOR"] == "tcg" {
		remove(j.at(build, "resources", "limits"), "devices.kubevirt.io/kvm")
	}
	j.environment(build, env, true)
	maps.Copy(address, t.reach())
	j.environment(push, address, false)
	j.further(pod, push, e, t)
	j.label(e, t)
}

// reach are the settings by which any container finds the registry.
func (t Target) reach() map[string]string {
	all := map[string]string{}
	for _, name := range []string{"REGISTRY_INSECURE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v, ok := t.Host[name]; ok {
			all[name] = v
		}
	}
	return all
}

// deadline gives a child the time that its parents may take, too, and returns
// that of one image.
func (j *job) deadline(waits int) time.Duration {
	n := j.at(j.root, "spec", "template", "spec", "activeDeadlineSeconds")
	if j.err != nil {
		return 0
	}
	seconds, err := strconv.Atoi(n.Value)
	if err != nil {
		j.err = fmt.Errorf("the Job's template: activeDeadlineSeconds: %w", err)
	}
	n.Value = strconv.Itoa(seconds * (waits + 1))
	return time.Duration(seconds) * time.Second
}

// size makes the guest, the container and the volume fit each other, as
// docs/kubernetes.md says under "Size".
func (j *job) size(pod, build *yaml.Node, e Entry, env map[string]string) {
	if e.memoryMiB > 0 {
		env["MEMORY"] = strconv.Itoa(e.memoryMiB)
		for _, kind := range []string{"requests", "limits"} {
			j.set(j.at(build, "resources", kind), "memory", fmt.Sprintf("%dMi", e.memoryMiB+2048))
		}
	}
	if e.diskSize <= 0 {
		return
	}
	volume := 3*ceil(e.diskSize, gib) + 2
	for _, v := range j.at(pod, "volumes").Content {
		if name := lookup(v, "name"); name != nil && name.Value == "scratch" {
			j.set(j.at(v, "emptyDir"), "sizeLimit", fmt.Sprintf("%dGi", volume))
		}
	}
	env["DISK_SIZE"] = strconv.FormatInt(e.diskSize, 10)
	if e.diskSize%gib == 0 {
		env["DISK_SIZE"] = strconv.FormatInt(e.diskSize/gib, 10) + "G"
	}
	j.set(j.at(build, "resources", "requests"), "ephemeral-storage", fmt.Sprintf("%dGi", ceil(volume, 2)))
	j.set(j.at(build, "resources", "limits"), "ephemeral-storage", fmt.Sprintf("%dGi", volume+2))
}

func ceil(n, unit int64) int64 { return (n + unit - 1) / unit }

// ofAnImage are the settings that the template has for one image. The sizes
// are not among them: the template has values which fit its pod.
var ofAnImage = slices.DeleteFunc(catalogue.Variables(), func(name string) bool {
	return name == "MEMORY" || name == "CPUS" || name == "DISK_SIZE"
})

// environment sets variables in their place or at the end. What else the
// template says of an image is taken away: it is about another one.
func (j *job) environment(container *yaml.Node, env map[string]string, whole bool) {
	list := j.at(container, "env")
	if j.err != nil {
		return
	}
	var kept []*yaml.Node
	left := maps.Clone(env)
	for _, v := range list.Content {
		name := lookup(v, "name").Value
		value, ok := env[name]
		if ok {
			j.set(v, "value", escape(value))
			delete(left, name)
		}
		if ok || !whole || !slices.Contains(ofAnImage, name) {
			kept = append(kept, v)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		kept = append(kept, mapping("name", name, "value", escape(left[name])))
	}
	list.Content = kept
}

// escape keeps Kubernetes from reading $(NAME) as a variable.
func escape(value string) string { return strings.ReplaceAll(value, "$", "$$") }

// wait has a container before the one that builds wait for the parent, as long
// as so many parents may take, and fetch its disk: the one that builds finds it
// in the cache. But for that, and for whose password it has, it is as the one
// that pushes.
func (j *job) wait(e Entry, parents int, t Target, pullSecret string) {
	each := j.deadline(parents)
	if e.From == "" {
		return
	}
	pod := j.at(j.root, "spec", "template", "spec")
	init := j.at(pod, "initContainers")
	build, push := j.at(init, "0"), j.at(pod, "containers", "0")
	base, env, mounts := unalias(push), sequence(), sequence(j.named(build, "volumeMounts", "scratch"))
	for _, name := range []string{"ISO_URL", "ISO_CHECKSUM", "CACHE_DIR", "HOME", "TMPDIR"} {
		env.Content = append(env.Content, j.named(build, "env", name))
	}
	if parents > 0 {
		env.Content = append(env.Content, mapping("name", "BASE_TIMEOUT", "value", (each*time.Duration(parents)).String()))
	}
	reach := t.reach()
	for _, name := range slices.Sorted(maps.Keys(reach)) {
		env.Content = append(env.Content, mapping("name", name, "value", escape(reach[name])))
	}
	if pullSecret != "" {
		user, mount, volume := j.named(push, "env", "REGISTRY_USER"), j.named(push, "volumeMounts", "registry"), j.named(pod, "volumes", "registry")
		j.set(j.at(user, "valueFrom", "secretKeyRef"), "name", pullSecret)
		j.set(mount, "name", "pull")
		j.set(volume, "name", "pull")
		j.set(j.at(volume, "secret"), "secretName", pullSecret)
		env.Content = append(env.Content, user, j.named(push, "env", "REGISTRY_PASS_FILE"))
		mounts.Content = append(mounts.Content, mount)
		volumes := j.at(pod, "volumes")
		volumes.Content = append(volumes.Content, volume)
	}
	j.set(base, "name", "base")
	put(base, "command", sequence(scalar("diskforge"), scalar("base")))
	put(base, "env", env)
	put(base, "volumeMounts", mounts)
	init.Content = slices.Insert(init.Content, 0, base)
}

// further pushes the tags beyond the first before that one: children wait for
// the first.
func (j *job) further(pod, push *yaml.Node, e Entry, t Target) {
	init := j.at(pod, "initContainers")
	command := j.at(push, "command")
	if j.err != nil {
		return
	}
	for i, tag := range e.Tags[1:] {
		c := unalias(push)
		j.set(c, "name", fmt.Sprintf("push-%d", i+2))
		further := unalias(command)
		further.Content = append(further.Content, scalar(t.repository(e.Name)+":"+tag))
		put(c, "command", further)
		init.Content = append(init.Content, c)
	}
}

// trust gives every container the further authorities: a pod sees no file of
// the host that plans, but its own annotations as files.
func (j *job) trust(ca string) {
	if ca == "" {
		return
	}
	const annotation, folder, file = "diskforge/ca", "/ca", "ca.pem"
	pod := j.at(j.root, "spec", "template", "spec")
	put(j.at(j.root, "spec", "template", "metadata"), "annotations", mapping(annotation, ca))
	for _, list := range []string{"initContainers", "containers"} {
		for _, c := range j.at(pod, list).Content {
			env, mounts, mount := j.at(c, "env"), j.at(c, "volumeMounts"), mapping("name", "ca", "mountPath", folder)
			put(mount, "readOnly", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true"})
			env.Content = append(env.Content, mapping("name", "CA_FILE", "value", folder+"/"+file))
			mounts.Content = append(mounts.Content, mount)
		}
	}
	item, field, volume := mapping("path", file), mapping("fieldPath", "metadata.annotations['"+annotation+"']"), mapping("name", "ca")
	put(item, "fieldRef", field)
	source := mapping()
	put(source, "items", sequence(item))
	put(volume, "downwardAPI", source)
	volumes := j.at(pod, "volumes")
	volumes.Content = append(volumes.Content, volume)
}

// maxPrefix is what Kubernetes keeps of a generated name, so that the name of a
// Job's pod fits a label.
const maxPrefix = 58

// label names the Job, anew for each that is made of the plan, and makes it
// findable.
func (j *job) label(e Entry, t Target) {
	metadata, template := j.at(j.root, "metadata"), j.at(j.root, "spec", "template")
	if j.err != nil {
		return
	}
	name := "diskforge-" + strings.NewReplacer(".", "-", "_", "-").Replace(e.Name)
	j.set(metadata, "generateName", strings.TrimRight(name[:min(len(name), maxPrefix-1)], "-")+"-")
	labels := mapping(
		"app.kubernetes.io/name", "diskforge",
		"diskforge/image", strings.TrimRight(e.Name[:min(len(e.Name), 63)], "-._"),
		"diskforge/level", strconv.Itoa(e.Level))
	annotations := mapping("diskforge/reference", t.repository(e.Name)+":"+e.Tags[0], "diskforge/inputs", e.Inputs)
	put(metadata, "labels", labels)
	put(metadata, "annotations", annotations)
	of := mapping()
	put(of, "labels", unalias(labels))
	put(template, "metadata", of)
}

// at returns a part of the template by the keys and positions that lead to it.
func (j *job) at(n *yaml.Node, way ...string) *yaml.Node {
	for _, step := range way {
		if n == nil {
			break
		}
		i, err := strconv.Atoi(step)
		switch {
		case err != nil:
			n = lookup(n, step)
		case i < len(n.Content):
			n = n.Content[i]
		default:
			n = nil
		}
	}
	if n == nil {
		if j.err == nil {
			j.err = fmt.Errorf("the Job's template has no %s", strings.Join(way, "."))
		}
		return &yaml.Node{}
	}
	return n
}

// named is a copy of the item with that name in a list.
func (j *job) named(n *yaml.Node, list, name string) *yaml.Node {
	for _, item := range j.at(n, list).Content {
		if of := lookup(item, "name"); of != nil && of.Value == name {
			return unalias(item)
		}
	}
	if j.err == nil {
		j.err = fmt.Errorf("the Job's template has no %s in %s", name, list)
	}
	return mapping()
}

// set gives a key a text.
func (j *job) set(n *yaml.Node, key, value string) { put(n, key, scalar(value)) }

// put gives a key of a mapping a value, in its place or at the end.
func put(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value
			return
		}
	}
	n.Content = append(n.Content, scalar(key), value)
}

// remove takes a key from a mapping.
func remove(n *yaml.Node, key string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content = slices.Delete(n.Content, i, i+2)
			return
		}
	}
}

// lookup returns the value of a key of a mapping, or nil.
func lookup(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// scalar is one that is text to every reader. The encoder of Go's values,
// unlike that of nodes, also quotes what YAML 1.1, which Kubernetes reads,
// takes for a boolean or a number: on, n, 0o17.
func scalar(value string) *yaml.Node {
	n := &yaml.Node{}
	if err := n.Encode(value); err != nil {
		panic(err) // a text has no form that cannot be encoded
	}
	return n
}

// sequence is a list of items.
func sequence(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
}

// mapping is a mapping of keys and texts in turn.
func mapping(pairs ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, p := range pairs {
		n.Content = append(n.Content, scalar(p))
	}
	return n
}

// unalias copies a node with what its aliases stand for, and without comments:
// they are about the template.
func unalias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return unalias(n.Alias)
	}
	c := &yaml.Node{Kind: n.Kind, Style: n.Style, Tag: n.Tag, Value: n.Value}
	for _, child := range n.Content {
		c.Content = append(c.Content, unalias(child))
	}
	return c
}
