package fleet

import (
	"context"

	"github.com/netgroup-polito/diskforge/internal/pipeline"
)

// Schedule is what Run orders its work by.
var Schedule = schedule

// BuildWith has single images built by something else.
func (a *All) BuildWith(run func(context.Context, *pipeline.Build) (Result, error)) {
	a.run = run
}
