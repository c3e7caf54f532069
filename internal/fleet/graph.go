package fleet

import (
	"cmp"
	"fmt"
	"time"
)

// node is a job in its graph.
type node struct {
	Job
	parent      *node
	children    []*node
	chain       int // jobs on the longest way down, itself included
	descendants int
	need, keep  []int64 // in the order of room
	overtaken   int     // by less urgent jobs, while it could have started but for want of room
	began       time.Time
	err         error
	outcome     Outcome
}

// graph connects the jobs. Every job has at most one parent, so that a cycle
// is what cannot be reached from a job without one.
func graph(jobs []Job) ([]*node, error) {
	byName := make(map[string]*node, len(jobs))
	nodes := make([]*node, len(jobs))
	for i, j := range jobs {
		if byName[j.Name] != nil {
			return nil, fmt.Errorf("two jobs are called %q", j.Name)
		}
		nodes[i] = &node{Job: j}
		byName[j.Name] = nodes[i]
	}
	for _, n := range nodes {
		if n.Parent == "" {
			continue
		}
		if n.parent = byName[n.Parent]; n.parent == nil {
			return nil, fmt.Errorf("the parent %q of %q is not there", n.Parent, n.Name)
		}
		n.parent.children = append(n.parent.children, n)
	}
	for _, n := range nodes {
		if n.parent == nil {
			n.measure()
		}
	}
	for _, n := range nodes {
		if n.chain == 0 {
			return nil, fmt.Errorf("%q is its own ancestor", n.Name)
		}
	}
	return nodes, nil
}

// measure finds out how much depends on a job.
func (n *node) measure() {
	for _, c := range n.children {
		c.measure()
		n.chain = max(n.chain, c.chain)
		n.descendants += 1 + c.descendants
	}
	n.chain++
}

// byUrgency sorts the critical path first: the job from which the longest
// chain hangs, then the one that most others need.
func byUrgency(a, b *node) int {
	return cmp.Or(cmp.Compare(b.chain, a.chain), cmp.Compare(b.descendants, a.descendants))
}

// ready says whether what the job builds on is there.
func (n *node) ready() bool {
	return n.parent == nil || n.parent.outcome.State == Done || n.parent.outcome.State == Skipped
}
