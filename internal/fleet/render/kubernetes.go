package render

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/fleet"
	"github.com/netgroup-polito/diskforge/internal/settings"
)

// Kubernetes writes a stream of Jobs, the template (deploy.Job) filled in for
// each image that is built, parents first. A child starts from the registry's
// image of its parent's inputs: a container before the one that builds waits
// until that is there and fetches it, with the login of pullSecret where that
// is not empty, a secret with username and password. No playbook runs where a
// password is. Images that no pod can build are an error, a line for each
// reason, and nothing is written.
func Kubernetes(w io.Writer, template []byte, entries []*fleet.Entry, t Target, pullSecret string) error {
	if err := t.Check(); err != nil {
		return err
	}
	build := builds(entries)
	bad := refusals{all: len(build), signed: t.Signed}
	for _, e := range build {
		bad.address(e)
		bad.pod(e)
	}
	if err := bad.err(); err != nil {
		return err
	}
	var out bytes.Buffer
	if len(build) == 0 {
		out.WriteString("# " + Summary(entries) + "\n")
	}
	for i, e := range build {
		if i > 0 {
			out.WriteString("---\n")
		}
		if err := writeJob(&out, template, e, t, pullSecret); err != nil {
			return fmt.Errorf("the Job's template: %w", err)
		}
	}
	for _, x := range fleet.ToMake(entries) {
		out.WriteString("---\n")
		if err := writeIndex(&out, template, x, t); err != nil {
			return fmt.Errorf("the Job's template: %w", err)
		}
	}
	_, err := out.WriteTo(w)
	return err
}

// pod collects what does not work in the Job's pod.
func (r *refusals) pod(e *fleet.Entry) {
	r.files(e, "a pod")
	if e.Settings["BASE_FROM_PACKAGES"] == "true" {
		r.add(e, "a base from packages takes user namespaces, which a restricted pod does not have",
			"give base url and checksum, or push the base with another image")
	}
	if e.Settings["ANSIBLE_DIR"] != "" {
		r.add(e, "ansible-dir names a folder, which a pod does not have", "use git")
	}
}

// job is a Job of Kubernetes (batch/v1), as far as an image changes the
// template; the rest passes through.
type job struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   metadata
	Spec       struct {
		Rest     rest `yaml:",inline"`
		Template struct {
			Metadata metadata
			Spec     pod
		}
	}

	err error // what the template lacks
}

type rest = map[string]any

type metadata struct {
	GenerateName string `yaml:"generateName,omitempty"`
	Labels       map[string]string
	Annotations  map[string]string `yaml:",omitempty"`
}

type pod struct {
	ActiveDeadlineSeconds int         `yaml:"activeDeadlineSeconds"`
	Rest                  rest        `yaml:",inline"`
	InitContainers        []container `yaml:"initContainers"` // that builds
	Containers            []container // that pushes
	Volumes               []part
}

type container struct {
	Name      string
	Image     string
	Command   []string `yaml:",flow"`
	Env       []part
	Resources struct{ Requests, Limits map[string]string }
	Mounts    []part `yaml:"volumeMounts"`
	Rest      rest   `yaml:",inline"`
}

// part is a variable, a volume or the mount of one.
type part struct {
	Name  string
	Value string `yaml:",omitempty"`
	Rest  rest   `yaml:",inline"`
}

// writeJob writes the template filled in for an image.
func writeJob(w io.Writer, template []byte, e *fleet.Entry, t Target, pullSecret string) error {
	var j job
	if err := yaml.Unmarshal(template, &j); err != nil {
		return err
	}
	p := &j.Spec.Template.Spec
	if len(p.InitContainers) == 0 || len(p.Containers) == 0 || p.ActiveDeadlineSeconds == 0 {
		return errors.New("it has no container that builds, none that pushes, or no activeDeadlineSeconds")
	}
	build, push := &p.InitContainers[0], &p.Containers[0]
	if build.Resources.Requests == nil || build.Resources.Limits == nil {
		return errors.New("its container that builds has no requests, or no limits")
	}
	address := map[string]string{"TARGET_REGISTRY": t.Registry, "REGISTRY_PREFIX": t.Prefix, "IMAGE_NAME": e.ImageName(), "IMAGE_TAG": e.Tags[0]}
	env := t.settings(e)
	maps.Copy(env, address)
	j.size(build, e, env)
	if env["ACCELERATOR"] == "tcg" {
		delete(build.Resources.Limits, "devices.kubevirt.io/kvm")
	} else if nodes, ok := p.Rest["nodeSelector"].(rest); ok && env["ARCHITECTURE"] != "" { // where it need not be emulated
		nodes["kubernetes.io/arch"] = env["ARCHITECTURE"]
	}
	build.Env = slices.DeleteFunc(build.Env, func(v part) bool { // what the template says is of another image
		_, ours := env[v.Name]
		return !ours && ofAnImage(v.Name)
	})
	build.set(env)
	maps.Copy(address, t.reach())
	push.set(address)
	for i, tag := range e.Tags[1:] { // before the first tag, which children wait for
		further := *push
		further.Name = fmt.Sprintf("push-%d", i+2)
		further.Command = append(slices.Clone(push.Command), t.repository(e.ImageName())+":"+tag)
		p.InitContainers = append(p.InitContainers, further)
	}
	j.label(e.Name, e.Level, map[string]string{"diskforge/reference": t.repository(e.ImageName()) + ":" + e.Tags[0], "diskforge/inputs": e.Inputs})
	j.wait(e, t, pullSecret)
	return j.write(w, t)
}

// writeIndex writes the template filled in for an index: what pushes waits for its images,
// as long as all of these may take, and makes it.
func writeIndex(w io.Writer, template []byte, x *fleet.Index, t Target) error {
	var j job
	if err := yaml.Unmarshal(template, &j); err != nil {
		return err
	}
	p := &j.Spec.Template.Spec
	if len(p.Containers) == 0 {
		return errors.New("it has no container that pushes")
	}
	level := 0
	for _, e := range x.Parts {
		level = max(level, e.Level+1)
	}
	each := p.ActiveDeadlineSeconds
	p.InitContainers, p.ActiveDeadlineSeconds = nil, each*(level+1)
	push, tags := &p.Containers[0], x.Tags
	env := map[string]string{
		"TARGET_REGISTRY": t.Registry, "REGISTRY_PREFIX": t.Prefix, "IMAGE_NAME": x.Name, "IMAGE_TAG": tags[0],
		"BASE_TIMEOUT": (time.Duration(each*level) * time.Second).String(),
	}
	maps.Copy(env, t.reach())
	push.set(env)
	further := *push
	push.Command = append([]string{"diskforge", "push"}, x.Push(tags[0])...)
	for i, tag := range tags[1:] { // of the same images: at once
		further.Name, further.Command = fmt.Sprintf("push-%d", i+2), append([]string{"diskforge", "push"}, x.Push(tag)...)
		p.Containers = append(p.Containers, further)
	}
	j.label(x.Name, level, map[string]string{"diskforge/reference": x.Reference})
	return j.write(w, t)
}

// write writes the Job down.
func (j *job) write(w io.Writer, t Target) error {
	j.trust(t.CA)
	if j.err != nil {
		return j.err
	}
	out := yaml.NewEncoder(w) // of each its own: an encoder keeps what it has written
	out.SetIndent(2)
	return errors.Join(out.Encode(j), out.Close())
}

// ofAnImage says whether the template has the setting for one image. The sizes
// are not of that kind: the template has values which fit its pod.
func ofAnImage(env string) bool {
	f, _ := settings.By(env)
	return f.Key != "" && env != "MEMORY" && env != "CPUS" && env != "DISK_SIZE"
}

// set sets variables in their place or at the end.
func (c *container) set(env map[string]string) {
	left := maps.Clone(env)
	for i, v := range c.Env {
		if value, ok := left[v.Name]; ok {
			c.Env[i].Value = escape(value)
			delete(left, v.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		c.Env = append(c.Env, part{Name: name, Value: escape(left[name])})
	}
}

// escape keeps Kubernetes from reading $(NAME) as a variable.
func escape(value string) string { return strings.ReplaceAll(value, "$", "$$") }

// named is the one of that name.
func (j *job) named(parts []part, name string) *part {
	i := slices.IndexFunc(parts, func(p part) bool { return p.Name == name })
	if i < 0 {
		j.err = fmt.Errorf("it lacks a variable, a volume or a mount: %s", name)
		return &part{}
	}
	return &parts[i]
}

const gib = 1 << 30

// size makes the guest, the container and the volume fit each other, as
// docs/kubernetes.md says under "Size".
func (j *job) size(build *container, e *fleet.Entry, env map[string]string) {
	requests, limits := build.Resources.Requests, build.Resources.Limits
	if e.MemoryMiB > 0 {
		env["MEMORY"] = strconv.Itoa(e.MemoryMiB)
		requests["memory"] = fmt.Sprintf("%dMi", e.MemoryMiB+1024)
		limits["memory"] = fmt.Sprintf("%dMi", e.MemoryMiB+2048)
	}
	if e.DiskSize > 0 {
		env["DISK_SIZE"] = strconv.FormatInt(e.DiskSize, 10)
		if e.DiskSize%gib == 0 {
			env["DISK_SIZE"] = strconv.FormatInt(e.DiskSize/gib, 10) + "G"
		}
		size := (e.DiskSize + gib - 1) / gib
		volume := 3*size + 2
		j.named(j.Spec.Template.Spec.Volumes, "scratch").Rest = rest{"emptyDir": rest{"sizeLimit": fmt.Sprintf("%dGi", volume)}}
		requests["ephemeral-storage"] = fmt.Sprintf("%dGi", size)
		limits["ephemeral-storage"] = fmt.Sprintf("%dGi", volume+2)
	}
}

// wait has a container before the one that builds wait for the parent, as long
// as all before it may take, and fetch its disk: the one that builds finds it in
// the cache. But for that, and for whose password it has, it is as the one that
// pushes. The pod's deadline grows by the same time.
func (j *job) wait(e *fleet.Entry, t Target, pullSecret string) {
	parents := 0
	for a := e.Parent; a != nil && a.Action == fleet.Build; a = a.Parent {
		parents++
	}
	p := &j.Spec.Template.Spec
	each := p.ActiveDeadlineSeconds
	p.ActiveDeadlineSeconds = each * (parents + 1)
	if e.Parent == nil {
		return
	}
	build, push, base := p.InitContainers[0], p.Containers[0], p.Containers[0]
	base.Name, base.Command, base.Env = "base", []string{"diskforge", "base"}, nil
	for _, name := range []string{"ISO_URL", "ISO_CHECKSUM", "CACHE_DIR", "HOME", "TMPDIR"} {
		base.Env = append(base.Env, *j.named(build.Env, name))
	}
	if parents > 0 {
		base.Env = append(base.Env, part{Name: "BASE_TIMEOUT", Value: (time.Duration(each*parents) * time.Second).String()})
	}
	base.set(t.reach())
	base.Mounts = []part{*j.named(build.Mounts, "scratch")}
	if pullSecret != "" {
		user := part{Name: "REGISTRY_USER", Rest: rest{"valueFrom": rest{"secretKeyRef": rest{"name": pullSecret, "key": "username"}}}}
		base.Env = append(base.Env, user, *j.named(push.Env, "REGISTRY_PASS_FILE"))
		base.Mounts = append(base.Mounts, part{Name: "pull", Rest: j.named(push.Mounts, "registry").Rest})
		secret := rest{}
		if of, ok := j.named(p.Volumes, "registry").Rest["secret"].(rest); ok {
			maps.Copy(secret, of)
		}
		secret["secretName"] = pullSecret
		p.Volumes = append(p.Volumes, part{Name: "pull", Rest: rest{"secret": secret}})
	}
	p.InitContainers = slices.Insert(p.InitContainers, 0, base)
}

// trust gives every container the further authorities: a pod sees no file of
// the host that plans, but its own annotations as files.
func (j *job) trust(ca string) {
	if ca == "" {
		return
	}
	const annotation, folder, file = "diskforge/ca", "/ca", "ca.pem"
	p := &j.Spec.Template.Spec
	j.Spec.Template.Metadata.Annotations = map[string]string{annotation: ca}
	for _, list := range [][]container{p.InitContainers, p.Containers} {
		for i := range list {
			c := &list[i]
			c.Env = append(slices.Clip(c.Env), part{Name: "CA_FILE", Value: folder + "/" + file})
			c.Mounts = append(slices.Clip(c.Mounts), part{Name: "ca", Rest: rest{"mountPath": folder, "readOnly": true}})
		}
	}
	item := rest{"path": file, "fieldRef": rest{"fieldPath": "metadata.annotations['" + annotation + "']"}}
	p.Volumes = append(p.Volumes, part{Name: "ca", Rest: rest{"downwardAPI": rest{"items": []rest{item}}}})
}

// maxPrefix is what Kubernetes keeps of a generated name, so that the name of a
// Job's pod fits a label.
const maxPrefix = 58

// label names the Job, anew for each that is made of the plan, and makes it
// findable.
func (j *job) label(image string, level int, annotations map[string]string) {
	name := "diskforge-" + strings.NewReplacer(".", "-", "_", "-").Replace(image)
	labels := map[string]string{
		"app.kubernetes.io/name": "diskforge",
		"diskforge/image":        strings.TrimRight(image[:min(len(image), 63)], "-._"),
		"diskforge/level":        strconv.Itoa(level),
	}
	j.Metadata = metadata{
		GenerateName: strings.TrimRight(name[:min(len(name), maxPrefix-1)], "-") + "-",
		Labels:       labels,
		Annotations:  annotations,
	}
	j.Spec.Template.Metadata.Labels = labels
}
