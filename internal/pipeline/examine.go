package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/netgroup-polito/diskforge/internal/contract"
	"github.com/netgroup-polito/diskforge/internal/failure"
	"github.com/netgroup-polito/diskforge/internal/guest/hygiene"
	"github.com/netgroup-polito/diskforge/internal/image/disk"
	"github.com/netgroup-polito/diskforge/internal/progress"
)

// examine looks into the finished disk at rest and in the guest that boots
// from it, side by side. Neither stops the other: one run tells everything
// that has to be mended.
func (b *Build) examine(ctx context.Context, dir *Dir, r ready, path string, verify func(context.Context) error) error {
	scratch, err := dir.Temp(stageHygiene)
	if err != nil {
		return err
	}
	var atRest error
	var scan sync.WaitGroup
	scan.Go(func() { atRest = b.hygiene(ctx, r, path, scratch) })
	running := verify(ctx)
	scan.Wait()
	return together(atRest, running)
}

// together is two errors as one, with the evidence of both.
func together(one, two error) error {
	a, okOne := failure.In(one)
	b, okTwo := failure.In(two)
	if !okOne || !okTwo {
		return errors.Join(one, two)
	}
	both := failure.New(one.Error()+"; "+two.Error(), "")
	both.Lines, both.Log, both.Err = append(slices.Clone(a.Lines), b.Lines...), first(a.Log, b.Log), errors.Join(one, two)
	return both
}

// hygiene looks at the disk at rest for what the build left in it.
func (b *Build) hygiene(ctx context.Context, r ready, path, scratch string) error {
	return b.stage(ctx, stageHygiene, func(ctx context.Context, p progress.Reporter) (string, error) {
		info, err := disk.Inspect(ctx, path)
		if err != nil {
			return "", err
		}
		secrets, err := b.secrets()
		if err != nil {
			return "", err
		}
		found, err := hygiene.Scan(ctx, hygiene.Options{
			Disk: path, Format: info.Format, Dir: scratch, BuildUser: b.builder(), BakedUser: b.Config.BakeUser,
			Secrets: secrets, Policy: r.policy, LibguestfsEnv: r.accel.LibguestfsEnv(),
		}, p)
		b.cleanDisk(found)
		return fmt.Sprintf("%d rules, %d files", len(found.Rules), found.Files), err
	})
}

// builder is the account that playbooks run as.
func (b *Build) builder() string {
	if b.Config.BakeUser {
		return b.Config.VMUser
	}
	return b.Config.BuildUser
}

// inspect checks the packed image in dir, which is or will be called layout,
// against the contract of containerdisks; what others' images may lack, ours
// must have.
func (b *Build) inspect(ctx context.Context, dir, layout string) error {
	return b.stage(ctx, stageInspect, func(ctx context.Context, p progress.Reporter) (string, error) {
		image, err := contract.Layout(ctx, dir, p)
		if err != nil {
			return "", err
		}
		image.Reference = layout
		b.inspectedImage(image)
		return fmt.Sprintf("%d checks", len(image.Checks)), image.Err(contract.Warning)
	})
}
