package deploy_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/netgroup-polito/diskforge/internal/image/attest"
)

func TestThePolicyAsksForTheStatementsThatAreSigned(t *testing.T) {
	text, err := os.ReadFile("policy.yaml")
	require.NoError(t, err)
	var policy struct {
		Spec struct {
			Attestations []struct {
				Name   string
				InToto struct{ Type string } `yaml:"intoto"`
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &policy))
	types := map[string]string{}
	for _, a := range policy.Spec.Attestations {
		types[a.Name] = a.InToto.Type
	}
	assert.Equal(t, map[string]string{"signature": attest.Signature, "revocation": attest.Revocation}, types)
}
