package engine

import (
	"context"
	"os"

	"dagger.io/dagger"
	"github.com/dagger/querybuilder"

	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

// address are the arguments that name the image: what is packed depends on
// them, so export and publish give the same.
func (b *Build) address() map[string]any {
	args := map[string]any{}
	for name, value := range map[string]string{
		"targetRegistry": b.Config.TargetRegistry, "registryPrefix": b.Config.RegistryPrefix,
		"imageName": b.Config.ImageName, "imageTag": b.Config.ImageTag,
	} {
		if value != "" {
			args[name] = value
		}
	}
	return args
}

func with(q *querybuilder.Selection, args map[string]any) *querybuilder.Selection {
	for name, value := range args {
		q = q.Arg(name, value)
	}
	return q
}

// exportReport writes report.html, report.json and summary.md into a directory
// of this host.
func exportReport(ctx context.Context, image *querybuilder.Selection, dir string) error {
	_, err := new(dagger.Directory).WithGraphQLQuery(image.Select("report")).Export(ctx, dir)
	return err
}

// exportLayout writes the image's OCI layout to a directory of this host, whole
// or not at all.
func exportLayout(ctx context.Context, image *querybuilder.Selection, address map[string]any, layout string) error {
	directory := new(dagger.Directory).WithGraphQLQuery(with(image.Select("layout"), address))
	part := layout + ".part"
	defer os.RemoveAll(part)
	if err := os.MkdirAll(part, 0o755); err != nil { // Dagger makes folders for their owner alone
		return err
	}
	if _, err := directory.Export(ctx, part, dagger.DirectoryExportOpts{Wipe: true}); err != nil {
		return err
	}
	if err := os.RemoveAll(layout); err != nil {
		return err
	}
	return os.Rename(part, layout)
}

// publish has the engine push the image; the password travels as a secret.
func (b *Build) publish(ctx context.Context, client *dagger.Client, image *querybuilder.Selection, result *pipeline.Result) error {
	// Read as the host's push reads it.
	credentials, err := pipeline.RegistryOptions(b.Config, b.Version)
	if err != nil {
		return err
	}
	q := with(image.Select("publish"), b.address()).Arg("registryInsecure", b.Config.RegistryInsecure)
	if b.Config.RegistryUser != "" {
		q = q.Arg("registryUser", b.Config.RegistryUser).Arg("registryPass", client.SetSecret("registry-password", credentials.Password))
	}
	if b.Config.CAFile != "" {
		q = q.Arg("caFile", client.Host().File(b.Config.CAFile))
	}
	return q.Bind(&result.Reference).Execute(ctx)
}
