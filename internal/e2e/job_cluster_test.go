//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/deploy"
)

// failing is a playbook whose one task fails.
const failing = `
- hosts: all
  gather_facts: false
  tasks:
    - name: Fetch the files of the lab
      ansible.builtin.fail: {msg: "no route to the file server"}
`

// patches are what these tests change in deploy/job.yaml beyond what it leaves empty:
// this host has two processors, and perhaps no KVM that works.
var patches = map[string]string{"ACCELERATOR": "auto", "CPUS": "1"}

const (
	wait  = 30 * time.Minute // for anything that a guest does
	often = 3 * time.Second  // kubectl takes half a second of a processor
)

// written is deploy/job.yaml as an administrator fills it in, with changes: pairs of
// what stands there and what replaces it.
func written(t *testing.T, image string, values map[string]string, changes ...string) string {
	t.Helper()
	job := strings.ReplaceAll(string(deploy.Job), "registry.example.org/diskforge:2026-11-23", image)
	for setting, value := range values {
		field := regexp.MustCompile(`(- name: ` + setting + `( #.*)?\n +value: (&\S+ )?).*`)
		require.Regexp(t, field, job)
		job = field.ReplaceAllString(job, `${1}"`+value+`"`)
	}
	for i := 0; i < len(changes); i += 2 {
		require.Contains(t, job, changes[i])
		job = strings.ReplaceAll(job, changes[i], changes[i+1])
	}
	return job
}

// ordered are the settings of an image of the name.
func ordered(name, playbook string) map[string]string {
	values := map[string]string{
		"ISO_URL": "https://" + web + "/base.qcow2", "ISO_CHECKSUM": "file:https://" + web + "/SHA256SUMS",
		"GIT_ANSIBLE_URL": "https://" + web + "/playbooks", "ANSIBLE_PLAYBOOK": playbook,
		"TARGET_REGISTRY": labs, "REGISTRY_PREFIX": "labs", "IMAGE_NAME": name, "IMAGE_TAG": "1",
	}
	for k, v := range patches {
		values[k] = v
	}
	return values
}

// order creates the Job and returns its name.
func (c *cluster) order(t *testing.T, namespace, job string) string {
	t.Helper()
	created := c.ctl(t, job, "create", "--namespace", namespace, "--output", "name", "-f", "-")
	t.Logf("created %s", created)
	return strings.TrimPrefix(created, "job.batch/")
}

// pods are a Job's, the oldest first.
func (c *cluster) pods(t *testing.T, namespace, job string) []string {
	t.Helper()
	return strings.Fields(c.ctl(t, "", "get", "pods", "--namespace", namespace, "--selector", "batch.kubernetes.io/job-name="+job,
		"--sort-by", "{.metadata.creationTimestamp}", "--output", "jsonpath={.items[*].metadata.name}"))
}

// pod waits for a Job's pod of that number, from 1.
func (c *cluster) pod(t *testing.T, namespace, job string, number int) string {
	t.Helper()
	var all []string
	require.Eventually(t, func() bool { all = c.pods(t, namespace, job); return len(all) >= number }, wait, often, "no pod %d", number)
	return all[number-1]
}

// says waits until a container has said something, and returns all that it said.
func (c *cluster) says(t *testing.T, namespace, pod, container, words string) (said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	logs := []string{"logs", "--namespace", namespace, pod, "--container", container}
	for !c.Until(ctx, words, append(logs, "--follow")...) {
		if said, _ = c.Ctl("", logs...); ctx.Err() != nil {
			require.Fail(t, "it was never said: "+words, said)
		}
		time.Sleep(often) // it has not started, or has ended
	}
	return c.ctl(t, "", logs...)
}

// events waits until the cluster has told of a pod what is asked for.
func (c *cluster) events(t *testing.T, namespace, pod string, words ...string) {
	t.Helper()
	var told string
	require.Eventually(t, func() bool {
		told, _ = c.Ctl("", "describe", "pod", "--namespace", namespace, pod)
		return containsAll(told, words)
	}, 5*time.Minute, often, "%q of %s", words, pod)
}

// ends waits for a Job's end, and returns what kind it was, e.g.
// Failed/BackoffLimitExceeded.
func (c *cluster) ends(t *testing.T, namespace, job string) string {
	t.Helper()
	end := ""
	require.Eventually(t, func() bool {
		end = c.ctl(t, "", "get", "job", "--namespace", namespace, job, "--output",
			`jsonpath={range .status.conditions[?(@.status=="True")]}{.type}/{.reason} {end}`)
		return strings.Contains(end, "Failed/") || strings.Contains(end, "Complete/")
	}, wait, often)
	words := strings.Fields(end)
	return words[len(words)-1]
}

// terminated are the exit code and the message of a pod's container.
func (c *cluster) terminated(t *testing.T, pod, container string) (code, message string) {
	t.Helper()
	const format = `jsonpath={range .status.%[1]s[?(@.name=="%[2]s")]}{.state.terminated.exitCode}|{.state.terminated.message}{end}`
	list := "initContainerStatuses"
	if container == "push" {
		list = "containerStatuses"
	}
	code, message, _ = strings.Cut(c.ctl(t, "", "get", "pod", pod, "--output", fmt.Sprintf(format, list, container)), "|")
	return code, message
}

// kill ends a container as a kernel does that is short of memory.
func (c *cluster) kill(t *testing.T, pod, list string) {
	t.Helper()
	id := c.ctl(t, "", "get", "pod", pod, "--output", "jsonpath={.status."+list+"[0].containerID}")
	out, err := exec.Command("ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io",
		"task", "kill", "--signal", "SIGKILL", strings.TrimPrefix(id, "containerd://")).CombinedOutput()
	require.NoError(t, err, string(out))
}

// guests are the processes of QEMU in the cluster.
func guests() []string {
	var found []string
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		if exe, _ := os.Readlink(dir + "/exe"); strings.HasPrefix(filepath.Base(exe), "qemu-system") {
			found = append(found, dir)
		}
	}
	return found
}

// measure asks the kubelet again and again what pods use, until the returned function
// is called, which logs the most of each.
func (c *cluster) measure(t *testing.T) (end func()) {
	t.Helper()
	most := map[string]uint64{}
	quit, done := make(chan struct{}), make(chan struct{})
	note := func(what string, bytes uint64) { most[what] = max(most[what], bytes) }
	go func() {
		defer close(done)
		for {
			var summary struct {
				Pods []struct {
					PodRef     struct{ Name, Namespace string }
					Containers []struct {
						Name   string
						Memory struct{ WorkingSetBytes uint64 }
					}
					Volume []struct {
						Name      string
						UsedBytes uint64
					}
					EphemeralStorage struct {
						UsedBytes uint64
					} `json:"ephemeral-storage"`
				}
			}
			text, err := c.Ctl("", "get", "--raw", "/api/v1/nodes/node/proxy/stats/summary")
			if err == nil && json.Unmarshal([]byte(text), &summary) == nil {
				for _, p := range summary.Pods {
					note(p.PodRef.Name+" ephemeral storage", p.EphemeralStorage.UsedBytes)
					for _, k := range p.Containers {
						note(p.PodRef.Name+" memory of "+k.Name, k.Memory.WorkingSetBytes)
					}
					for _, v := range p.Volume {
						note(p.PodRef.Name+" volume "+v.Name, v.UsedBytes)
					}
				}
			}
			select {
			case <-quit:
				return
			case <-time.After(4 * often):
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		for _, what := range slices.Sorted(maps.Keys(most)) {
			if mib := most[what] >> 20; mib > 0 {
				t.Logf("%s: at most %d MiB", what, mib)
			}
		}
	}
}

func TestClusterRunsTheJobs(t *testing.T) {
	dir := enter(t)
	if dir == "" {
		return
	}
	c := startCluster(t, dir)
	t.Cleanup(c.measure(t))
	t.Run("what is empty is named and ends the Job", c.names)
	t.Run("a secret that is missing", c.lacksASecret)
	t.Run("a private registry of the Job's image", c.pullsFromAPrivateRegistry)
	t.Run("KVM that does not work", c.refusesKVM)
	t.Run("side by side", func(t *testing.T) { // two processors bear two guests
		t.Run("killed three times", func(t *testing.T) { t.Parallel(); c.isKilledThreeTimes(t) })
		t.Run("what does not go well", func(t *testing.T) {
			t.Parallel()
			t.Run("a volume that is too small", c.fillsItsVolume)
			t.Run("a deadline", c.isTooLate)
			t.Run("evicted, then deleted", c.isEvictedAndDeleted)
			t.Run("a playbook that fails", c.fails)
		})
	})
	t.Run("a parent and two children", c.plans)
}

const site = images + "/diskforge:site" // the Job's image

func (c *cluster) names(t *testing.T) {
	dir := t.TempDir() // as docs/kubernetes.md has it for kustomize
	named := regexp.MustCompile(`generateName: ([^ ]*)-.*`).ReplaceAllString(string(deploy.Job), "name: $1")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "job.yaml"), []byte(named), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(`
resources: [job.yaml]
nameSuffix: -empty-1
images: [{name: registry.example.org/diskforge, newName: `+images+`/diskforge, newTag: site}]
`), 0o644))
	c.ctl(t, "", "create", "-k", dir)
	const job = "diskforge-empty-1"
	assert.Equal(t, "Failed/PodFailurePolicy", c.ends(t, "default", job))
	pods := c.pods(t, "default", job)
	require.Len(t, pods, 1)
	said := c.says(t, "default", pods[0], "build", "ISO_URL")
	assert.NotContains(t, said, "base-from-packages", "a restricted pod makes none")
	for _, name := range []string{"ISO_CHECKSUM", "ANSIBLE_PLAYBOOK", "IMAGE_NAME", "IMAGE_TAG", "TARGET_REGISTRY"} {
		assert.Contains(t, said, name)
	}
	code, message := c.terminated(t, pods[0], "build")
	assert.Equal(t, "2", code)
	assert.Contains(t, message, "ISO_URL")
}

func (c *cluster) lacksASecret(t *testing.T) {
	const namespace = "course"
	c.ctl(t, "", "create", "namespace", namespace)
	require.Eventually(t, func() bool {
		_, err := c.Ctl("", "get", "serviceaccount", "default", "--namespace", namespace)
		return err == nil
	}, time.Minute, time.Second)
	job := c.order(t, namespace, written(t, site, nil))
	pod := c.pod(t, namespace, job, 1)
	c.events(t, namespace, pod, `secret "diskforge-registry" not found`)
	began := time.Now()
	c.login(t, namespace)
	c.says(t, namespace, pod, "build", "ISO_URL")
	t.Logf("went on %s after the secret was made", time.Since(began).Round(time.Second))
	assert.Less(t, time.Since(began), 150*time.Second, "docs/kubernetes.md: within two minutes")
	assert.Equal(t, "Failed/PodFailurePolicy", c.ends(t, namespace, job))
}

func (c *cluster) pullsFromAPrivateRegistry(t *testing.T) {
	private := labs + "/diskforge:site"
	job := c.order(t, "default", written(t, private, nil))
	c.events(t, "default", c.pod(t, "default", job, 1), "Failed to pull image", "401 Unauthorized")
	c.ctl(t, "", "delete", "job", job)
	job = c.order(t, "default", written(t, private, nil, "      nodeSelector:", "      imagePullSecrets: [{name: pull}]\n      nodeSelector:"))
	assert.Equal(t, "Failed/PodFailurePolicy", c.ends(t, "default", job))
}

func (c *cluster) refusesKVM(t *testing.T) {
	r := start(t, nil, diskforge(t), "doctor")
	r.wait(time.Minute)
	if !strings.Contains(r.stdout.String(), "accelerator          tcg") {
		t.Skip("SKIPPED, nothing was tested: KVM works here")
	}
	values := ordered("kvm", "parent")
	delete(values, "ACCELERATOR")
	job := c.order(t, "default", written(t, site, values))
	assert.Equal(t, "Failed/BackoffLimitExceeded", c.ends(t, "default", job), "another node may have one that works")
	pod := c.pod(t, "default", job, 1)
	assert.NotContains(t, c.ctl(t, "", "logs", pod, "--container", "build"), "stage=provision")
	_, message := c.terminated(t, pod, "build")
	assert.Contains(t, message, "KVM does not work here: ")
}

func (c *cluster) fillsItsVolume(t *testing.T) {
	job := c.order(t, "default", written(t, site, ordered("small", "parent"), "sizeLimit: 32Gi", "sizeLimit: 100Mi"))
	c.events(t, "default", c.pod(t, "default", job, 1), "Evicted", `Usage of EmptyDir volume "scratch" exceeds the limit "100Mi"`)
	assert.Equal(t, "Failed/BackoffLimitExceeded", c.ends(t, "default", job))
	assert.Len(t, c.pods(t, "default", job), 2)
	notPublished(t, labs, "small")
}

func (c *cluster) isTooLate(t *testing.T) {
	job := c.order(t, "default", written(t, site, ordered("late", "parent"), "activeDeadlineSeconds: 14400", "activeDeadlineSeconds: 30"))
	assert.Equal(t, "Failed/BackoffLimitExceeded", c.ends(t, "default", job))
	pods := c.pods(t, "default", job)
	assert.Len(t, pods, 2)
	c.events(t, "default", pods[0], "DeadlineExceeded")
	assert.Contains(t, c.says(t, "default", pods[0], "build", "stage="), "started stage=provision", "the log shows how far it came")
	notPublished(t, labs, "late")
}

func (c *cluster) isEvictedAndDeleted(t *testing.T) {
	job := c.order(t, "default", written(t, site, ordered("deleted", "parent")))
	pod := c.pod(t, "default", job, 1)
	c.says(t, "default", pod, "build", "started stage=provision")
	c.ctl(t, fmt.Sprintf(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q}}`, pod),
		"create", "--raw", "/api/v1/namespaces/default/pods/"+pod+"/eviction", "-f", "-")
	require.Eventually(t, func() bool {
		pods := c.pods(t, "default", job)
		return len(pods) == 1 && pods[0] != pod
	}, 2*time.Minute, often, "another pod in its place")
	assert.Empty(t, c.ctl(t, "", "get", "job", job, "--output", "jsonpath={.status.failed}"), "it does not count")
	pod = c.pod(t, "default", job, 1)
	c.says(t, "default", pod, "build", "started stage=provision")
	began := time.Now()
	c.ctl(t, "", "delete", "job", job)
	require.Eventually(t, func() bool { _, err := c.Ctl("", "get", "pod", pod); return err != nil }, 2*time.Minute, often)
	t.Logf("gone %s after the Job was deleted", time.Since(began).Round(time.Second))
	notPublished(t, labs, "deleted")
}

func (c *cluster) fails(t *testing.T) {
	job := c.order(t, "default", written(t, site, ordered("failing", "failing")))
	assert.Equal(t, "Failed/BackoffLimitExceeded", c.ends(t, "default", job))
	pods := c.pods(t, "default", job)
	assert.Len(t, pods, 2)
	for _, pod := range pods {
		said := c.says(t, "default", pod, "build", "Fetch the files of the lab")
		assert.Contains(t, said, "no route to the file server")
		code, message := c.terminated(t, pod, "build")
		assert.Equal(t, "1", code)
		assert.Contains(t, message, "no route to the file server")
	}
	notPublished(t, labs, "failing")
}

// claim is a volume that outlives pods, as docs/kubernetes.md has it; the node's disk
// stands for a storage class.
const claim = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: node}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 32Gi}
  local: {path: %s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: diskforge-scratch}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 32Gi}}
  storageClassName: ""
  volumeName: node
`

func (c *cluster) isKilledThreeTimes(t *testing.T) {
	disk := filepath.Join(c.dir, "volume")
	require.NoError(t, os.Mkdir(disk, 0o755))
	c.ctl(t, fmt.Sprintf(claim, disk), "create", "-f", "-")
	job := c.order(t, "default", written(t, site, ordered("course", "parent"), "backoffLimit: 1 ", "backoffLimit: 3 ",
		"emptyDir:\n            sizeLimit: 32Gi # three times DISK_SIZE and 2 GiB", "persistentVolumeClaim: {claimName: diskforge-scratch}"))
	first := c.pod(t, "default", job, 1)
	c.says(t, "default", first, "build", "started stage=provision")
	time.Sleep(20 * time.Second) // its guest starts
	c.kill(t, first, "initContainerStatuses")

	second := c.pod(t, "default", job, 2)
	c.says(t, "default", second, "build", "started stage=verify")
	c.kill(t, second, "initContainerStatuses")

	third := c.pod(t, "default", job, 3)
	assert.Equal(t, 2, strings.Count(c.says(t, "default", third, "build", "started stage=verify"), "done before"))
	c.says(t, "default", third, "build", "started stage=pack")
	require.NoError(t, exec.Command("pkill", "-STOP", "docker-registry").Run()) // so that push takes a while
	c.says(t, "default", third, "push", "stage=push")
	c.kill(t, third, "containerStatuses")
	fourth := c.pod(t, "default", job, 4)
	require.NoError(t, exec.Command("pkill", "-CONT", "docker-registry").Run())

	assert.Equal(t, "Complete/CompletionsReached", c.ends(t, "default", job))
	for _, pod := range []string{first, second, third} {
		code, _ := c.terminated(t, pod, map[bool]string{true: "push", false: "build"}[pod == third])
		assert.Equal(t, "137", code)
	}
	built := c.says(t, "default", fourth, "build", "@sha256:")
	assert.Equal(t, 3, strings.Count(built, "done before"), built)
	pushed := c.says(t, "default", fourth, "push", "\n"+labs) // the runtime puts the two streams together as they come
	_, reference, _ := strings.Cut(pushed, "\n"+labs)
	reference, _, _ = strings.Cut(labs+reference, "\n")
	assert.True(t, strings.HasPrefix(reference, labs+"/labs/course:1@sha256:"), reference)
	found := inspected(t, map[string]string{"REGISTRY_USER": "me", "REGISTRY_PASS": secret}, reference)
	assert.True(t, strings.HasSuffix(reference, found.Digest), found.Digest)
	assert.Empty(t, holdsSecret(t, disk))
	assert.Empty(t, holdsSecret(t, filepath.Join(c.dir, "logs")))
}

// planner makes a plan in the image that the Jobs run.
const planner = `
apiVersion: v1
kind: Pod
metadata: {name: planner}
spec:
  restartPolicy: Never
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: plan
      image: ` + images + `/diskforge:1
      command: [sh, -euc, "diskforge plan --catalogue /catalogue/catalogue.yaml --format kubernetes --pull-secret diskforge-registry 2>/work/said || { cat /work/said; exit 1; }"]
      env:
        - {name: CA_FILE, value: /catalogue/ca.pem}
        - {name: ACCELERATOR, value: tcg}
        - {name: REGISTRY_USER, value: me}
        - {name: REGISTRY_PASS, valueFrom: {secretKeyRef: {name: diskforge-registry, key: password}}}
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: catalogue, mountPath: /catalogue}]
  volumes: [{name: catalogue, configMap: {name: catalogue}}]
`

func (c *cluster) plans(t *testing.T) {
	file := filepath.Join(t.TempDir(), "catalogue.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
registry: %[1]s
prefix: labs
defaults: {git: {url: "https://%[2]s/playbooks", branch: master}, tags: ["1", latest], cpus: 1}
images:
  - {name: one, from: parent, playbook: one}
  - {name: two, from: parent, playbook: two}
  - {name: parent, base: {url: "https://%[2]s/base.qcow2", checksum: "file:https://%[2]s/SHA256SUMS"}, playbook: parent}
`, labs, web), 0o644))
	c.ctl(t, "", "create", "configmap", "catalogue", "--from-file", file, "--from-file", "ca.pem="+c.ca.File)
	c.ctl(t, planner, "create", "-f", "-")
	c.ctl(t, "", "wait", "pod", "planner", "--for", "jsonpath={.status.phase}=Succeeded", "--timeout", "5m")
	jobs := c.ctl(t, "", "logs", "planner")
	jobs = strings.ReplaceAll(jobs, "registry.example.org/diskforge:2026-11-23", images+"/diskforge:1")
	began := time.Now()
	created := strings.Fields(c.ctl(t, jobs, "create", "--output", "name", "-f", "-"))
	require.Len(t, created, 3)
	for _, job := range created {
		job = strings.TrimPrefix(job, "job.batch/")
		if !assert.Equal(t, "Complete/CompletionsReached", c.ends(t, "default", job), job) {
			for _, pod := range c.pods(t, "default", job) {
				t.Log(c.ctl(t, "", "logs", pod, "--all-containers", "--ignore-errors", "--prefix"))
			}
		}
		t.Logf("%s after %s", job, time.Since(began).Round(time.Second))
	}
	login := map[string]string{"REGISTRY_USER": "me", "REGISTRY_PASS": secret}
	parent := inspected(t, login, labs+"/labs/parent:1")
	latest, err := name.ParseReference(labs + "/labs/parent:latest")
	require.NoError(t, err)
	moved, err := remote.Head(latest, remote.WithAuth(&authn.Basic{Username: "me", Password: secret}))
	require.NoError(t, err)
	assert.Equal(t, parent.Digest, moved.Digest.String())
	for _, image := range []string{"one", "two"} {
		child := inspected(t, login, labs+"/labs/"+image+":1")
		assert.Equal(t, parent.Digest, child.Annotations["org.opencontainers.image.base.digest"])
	}
	assert.Empty(t, guests(), "nothing runs any more")
	assert.Empty(t, holdsSecret(t, filepath.Join(c.dir, "logs")))
}
