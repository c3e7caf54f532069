// Workdir_doc is the directory in which a build keeps its files: ours
// alone, locked, and with a record of every stage's output, so that a build
// that was stopped goes on, and nothing half-done or tampered with is ever
// taken for a result.
//
//	DIR/lock            held while a build runs, with its process number
//	DIR/records/*.json  what each stage read and made
//	DIR/tmp/            scratch, cleared when the directory is opened or closed
//	DIR/*.part          outputs in the making, cleared when it is opened
//	DIR/…               the stages' outputs

package pipeline
