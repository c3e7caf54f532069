package buildall

import (
	"context"

	"github.com/netgroup-polito/diskforge/internal/build"
)

// BuildWith has single images built by something else.
func (a *All) BuildWith(run func(context.Context, *build.Build) (build.Result, error)) { a.run = run }
