// Package manifests has no code: its tests hold deploy/ to Kubernetes' own
// types, schemas and Pod Security Standards. They lie here and not beside the
// manifests, because the libraries are heavier than the project's.
package manifests

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/yannh/kubeconform/pkg/validator"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

const deploy = "../../../deploy/"

// rendered are Jobs as diskforge plan --format kubernetes writes them.
var rendered = []string{"../../../internal/fleet/render/testdata/jobs.yaml", "../../../internal/fleet/render/testdata/jobs-pull-secret.yaml", "../../../internal/fleet/render/testdata/jobs-elsewhere.yaml"}

func TestTheJobMeetsTheRestrictedPodSecurityStandard(t *testing.T) {
	var job batchv1.Job
	decode(t, "job.yaml", &job)
	restricted(t, job)
}

func TestRenderedJobsMeetTheRestrictedPodSecurityStandardAndHaveGoodLabels(t *testing.T) {
	for _, file := range rendered {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		documents := bytes.Split(text, []byte("\n---\n"))
		require.Len(t, documents, 3)
		goodJobs(t, documents)
	}
}

func goodJobs(t *testing.T, documents [][]byte) {
	t.Helper()
	for _, document := range documents {
		var job batchv1.Job
		require.NoError(t, yaml.UnmarshalStrict(document, &job))
		restricted(t, job)
		assert.Empty(t, validation.IsDNS1123Label(job.GenerateName+"xxxxx")) // as the server completes it
		for _, meta := range []metav1.ObjectMeta{job.ObjectMeta, job.Spec.Template.ObjectMeta} {
			assert.Empty(t, metav1validation.ValidateLabels(meta.Labels, nil))
			assert.NotEmpty(t, meta.Labels)
		}
		for key := range job.Annotations {
			assert.Empty(t, validation.IsQualifiedName(key))
		}
	}
}

// restricted holds a Job to the Pod Security Standard of that name, and to what
// makes sense of its resources.
func restricted(t *testing.T, job batchv1.Job) {
	t.Helper()
	checks, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	require.NoError(t, err)
	pod := job.Spec.Template
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, result := range checks.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec) {
		assert.True(t, result.Allowed, "%s: %s", result.ForbiddenReason, result.ForbiddenDetail)
	}
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		assert.True(t, *c.SecurityContext.ReadOnlyRootFilesystem, c.Name)
		for name, limit := range c.Resources.Limits {
			request, ok := c.Resources.Requests[name]
			assert.True(t, ok || name == kvm, "%s has no request of %s: the limit would be it", c.Name, name)
			assert.LessOrEqual(t, request.Cmp(limit), 0, "%s requests more %s than its limit", c.Name, name)
		}
	}
	for name, most := range map[corev1.ResourceName]string{corev1.ResourceCPU: "1", corev1.ResourceEphemeralStorage: "31Gi"} {
		for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) { // one after another: the pod asks for the largest
			request := c.Resources.Requests[name]
			assert.LessOrEqual(t, request.Cmp(resource.MustParse(most)), 0, "%s asks a node for %s of %s", c.Name, request.String(), name)
		}
	}
	assert.Equal(t, corev1.RestartPolicyNever, pod.Spec.RestartPolicy, "a Job deletes the pod whose containers it restarts, and the log with it")
	assert.Nil(t, job.Spec.ActiveDeadlineSeconds, "it would count the time for which a pod waits for a node")
	assert.NotNil(t, pod.Spec.ActiveDeadlineSeconds)
}

// kvm is the device of KubeVirt's plugin. Kubernetes makes the request of an
// extended resource from its limit.
const kvm corev1.ResourceName = "devices.kubevirt.io/kvm"

func TestTheSecretIsOneOfKubernetes(t *testing.T) {
	var secret corev1.Secret
	decode(t, "registry-secret.yaml", &secret)
	assert.Equal(t, corev1.SecretTypeBasicAuth, secret.Type)
	assert.Contains(t, secret.StringData, corev1.BasicAuthUsernameKey)
	assert.Contains(t, secret.StringData, corev1.BasicAuthPasswordKey)
}

// decode refuses what the type does not have, and what stands there twice.
func decode(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(deploy + name)
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict(text, into))
}

// kubernetes is the release whose schemas the manifests are held to, with its
// module's hash: as a requirement of ours it would bring all of its own.
const (
	kubernetes = "k8s.io/kubernetes@v1.37.2"
	hash       = "h1:A2VDEiObzkYqFTKhSsn0ZEb0RlLEXpHWj93gi2HqEwE="
)

// schemas writes what kubeconform wants, a JSON schema a kind, made of the API
// description in the sources of Kubernetes, and returns the folder. There is
// no network in it but the module proxy's.
func schemas(t *testing.T) string {
	t.Helper()
	download := exec.Command("go", "mod", "download", "-json", kubernetes)
	download.Env = append(os.Environ(), "GONOSUMDB=k8s.io/kubernetes") // we know the sum
	out, err := download.Output()
	require.NoError(t, err, string(out))
	var module struct{ Dir, Sum string }
	require.NoError(t, json.Unmarshal(out, &module))
	require.Equal(t, hash, module.Sum)
	text, err := os.ReadFile(filepath.Join(module.Dir, "api", "openapi-spec", "swagger.json"))
	require.NoError(t, err)
	var description map[string]any
	require.NoError(t, json.Unmarshal(text, &description))
	definitions := description["definitions"].(map[string]any)
	for _, d := range definitions {
		d := d.(map[string]any)
		if d["properties"] != nil && d["additionalProperties"] == nil {
			d["additionalProperties"] = false
		}
	}
	// The description says "string"; the server also takes a number.
	definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = map[string]any{"type": []string{"string", "number"}}
	definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = map[string]any{"type": []string{"string", "integer"}}
	dir := t.TempDir()
	for file, kind := range map[string]string{"job-batch-v1.json": "io.k8s.api.batch.v1.Job", "secret-v1.json": "io.k8s.api.core.v1.Secret"} {
		schema, err := json.Marshal(map[string]any{"$ref": "#/definitions/" + kind, "definitions": definitions})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), schema, 0o644))
	}
	return dir
}

func TestKubeconformAcceptsTheManifestsAndRefusesASlip(t *testing.T) {
	v, err := validator.New([]string{schemas(t) + "/{{.ResourceKind}}{{.KindSuffix}}.json"}, validator.Opts{Strict: true})
	require.NoError(t, err)
	status := func(name string, text []byte) (all []validator.Status, said []string) {
		for _, r := range v.Validate(name, io.NopCloser(bytes.NewReader(text))) {
			all = append(all, r.Status)
			if r.Err != nil {
				said = append(said, r.Err.Error())
			}
		}
		return all, said
	}
	for _, name := range []string{"job.yaml", "registry-secret.yaml"} {
		text, err := os.ReadFile(deploy + name)
		require.NoError(t, err)
		got, said := status(name, text)
		assert.Equal(t, []validator.Status{validator.Valid}, got, said)
	}
	for _, file := range rendered {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		got, said := status(file, text)
		assert.Equal(t, []validator.Status{validator.Valid, validator.Valid, validator.Valid}, got, said)
	}
	text, err := os.ReadFile(deploy + "job.yaml")
	require.NoError(t, err)
	for _, slip := range [][2]string{{"backoffLimit: 1", "backofLimit: 1"}, {"runAsNonRoot: true", "runAsNonRoot: 'yes'"}, {"drop: [ALL]", "drop: ALL"}} {
		require.Contains(t, string(text), slip[0])
		got, _ := status("job.yaml", bytes.Replace(text, []byte(slip[0]), []byte(slip[1]), 1))
		assert.Equal(t, []validator.Status{validator.Invalid}, got, slip[1])
	}
}
