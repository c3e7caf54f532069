package contract_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

// crds is the folder of the custom resource definitions of KubeVirt, CDI and
// CrownLabs, beside the checkout: they are not ours to publish.
const crds = "../../../shared/crds"

// cluster judges documents as an API server with these definitions does that
// refuses unknown fields (fieldValidation=Strict); it runs no webhook and no CEL.
type cluster map[string]*jsonschema.Schema // by apiVersion and kind

// newCluster reads the definitions. Without them the test is skipped.
func newCluster(t testing.TB) cluster {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(crds, "*.yaml"))
	require.NoError(t, err)
	if len(files) == 0 {
		t.Skip("NOT TESTED: there are no custom resource definitions in " + crds + " (from internal/contract), so manifests were held to no schema")
	}
	all, compiler := cluster{}, jsonschema.NewCompiler()
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPI map[string]any `yaml:"openAPIV3Schema"`
					}
				}
			}
		}
		require.NoError(t, yaml.Unmarshal(raw, &crd), file)
		for _, v := range crd.Spec.Versions {
			of := v.Schema.OpenAPI
			strict(of)
			of["properties"].(map[string]any)["metadata"] = objectMeta
			name := fmt.Sprintf("%s/%s %s", crd.Spec.Group, v.Name, crd.Spec.Names.Kind)
			require.NoError(t, compiler.AddResource("crd:"+name, of))
			all[name], err = compiler.Compile("crd:" + name)
			require.NoError(t, err)
		}
	}
	return all
}

// objectMeta is what of the metadata is written: definitions leave it to the API server.
var objectMeta = map[string]any{
	"type": "object", "additionalProperties": false, "required": []any{"name", "namespace"},
	"properties": map[string]any{
		"name":        map[string]any{"type": "string", "pattern": `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`},
		"namespace":   map[string]any{"type": "string", "pattern": `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`},
		"annotations": texts,
		"labels": map[string]any{"type": "object", "additionalProperties": map[string]any{
			"type": "string", "pattern": `^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`,
		}},
	},
}

var texts = map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}}

// strict makes JSON schema of Kubernetes' structural schema: an object has no fields
// but those that it names.
func strict(schema map[string]any) {
	of, _ := schema["properties"].(map[string]any)
	for _, one := range of {
		strict(one.(map[string]any))
	}
	for _, one := range []string{"items", "additionalProperties"} {
		if of, ok := schema[one].(map[string]any); ok {
			strict(of)
		}
	}
	if schema["x-kubernetes-int-or-string"] == true {
		delete(schema, "type")
	}
	_, open := schema["additionalProperties"]
	if schema["type"] == "object" && !open && schema["x-kubernetes-preserve-unknown-fields"] != true {
		schema["additionalProperties"] = false
	}
	if schema["nullable"] == true {
		schema["type"] = []any{schema["type"], "null"}
	}
}

// documents parses a stream.
func documents(t testing.TB, stream string) (all []map[string]any) {
	t.Helper()
	for d := yaml.NewDecoder(strings.NewReader(stream)); ; {
		var one map[string]any
		if err := d.Decode(&one); errors.Is(err, io.EOF) {
			return all
		} else {
			require.NoError(t, err)
		}
		all = append(all, one)
	}
}

// refuses is the error of the first document that is not as its definition says.
// Of built-in objects only the metadata is looked at.
func (c cluster) refuses(t testing.TB, stream string) error {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource("meta:", maps.Clone(objectMeta)))
	meta := compiler.MustCompile("meta:")
	all := documents(t, stream)
	require.NotEmpty(t, all)
	for _, d := range all {
		name := fmt.Sprintf("%v %v", d["apiVersion"], d["kind"])
		schema := c[name]
		err := meta.Validate(d["metadata"])
		switch {
		case schema != nil:
			err = schema.Validate(d)
		case !strings.HasPrefix(name, "rbac.authorization.k8s.io/v1 Role"):
			err = errors.New("there is no such object")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
