package build

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/netgroup-polito/diskforge/internal/report"
)

func TestAStageThatRecallsAnEarlierReportNotesItsOwnEnd(t *testing.T) {
	var first, second Build
	first.record.begin("accel")("tcg", nil)
	first.record.begin("provision")("28 tasks", nil)
	text, err := first.told(report.Built)
	require.NoError(t, err)

	end := second.record.begin("sparsify")
	second.recall(text)
	end("trim", nil)
	text, err = second.told(report.Built)
	require.NoError(t, err)
	var told report.Report
	require.NoError(t, json.Unmarshal(text, &told))
	var results []string
	for _, s := range told.Stages {
		results = append(results, s.Name+": "+s.Result)
	}
	assert.Equal(t, []string{"accel: tcg", "provision: 28 tasks", "sparsify: trim"}, results)
}
