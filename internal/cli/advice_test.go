package cli

import (
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"

	"github.com/netgroup-polito/diskforge/internal/failure"
)

func TestAdviceIsGivenWhereItCanBeFollowed(t *testing.T) {
	with, without := &cobra.Command{}, &cobra.Command{}
	var keep bool
	keepFlag(with, &keep)
	for _, c := range []struct {
		command *cobra.Command
		gone    string // DISKFORGE_THROWAWAY
		want    failure.Error
	}{
		{with, "", failure.Error{Log: "/log", Guest: true}},
		{without, "", failure.Error{Log: "/log"}}, // build-all has no such flag
		{with, "1", failure.Error{}},              // nor is there a log in a container that is gone
	} {
		t.Setenv(throwaway, c.gone)
		f := &failure.Error{Log: "/log", Guest: true}
		advisable(c.command, f)
		assert.Equal(t, c.want, *f)
	}
}
