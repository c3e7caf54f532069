// Package deploy carries the Kubernetes manifests, so that diskforge can fill
// in job.yaml without its checkout. The tests read them as a cluster would and
// run their commands with their environment.
package deploy

import _ "embed"

// Job is job.yaml.
//
//go:embed job.yaml
var Job []byte
