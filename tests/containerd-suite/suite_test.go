// Package suite runs containerd's own tests of snapshotters against `lamina serve`.
//
// Each test gets a daemon and a root of its own, or all share one, and talks to it as containerd
// does, through the client of proxy plugins. tests/containerd/test_suite.py runs them, and in
// virtual machines tests/vm.
package suite

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
)

const (
	// programVariable names the `lamina` to run.
	programVariable = "LAMINA_SUITE_PROGRAM"
	// snapshottersVariable names those to test, with commas between them.
	snapshottersVariable = "LAMINA_SUITE_SNAPSHOTTERS"
	// sharedVariable, if set, gives all tests one daemon, and has them run one after another.
	sharedVariable = "LAMINA_SUITE_SHARED"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(sharedVariable) != "" {
		flag.Set("test.parallel", "1")
	}
	os.Exit(m.Run())
}

func TestSnapshotter(t *testing.T) {
	program := os.Getenv(programVariable)
	if program == "" {
		t.Skipf("%s is not set: run script/test containerd -k suite", programVariable)
	}
	for name := range strings.SplitSeq(os.Getenv(snapshottersVariable), ",") {
		t.Run(name, func(t *testing.T) {
			daemons := factory(program, name)
			if os.Getenv(sharedVariable) != "" {
				daemons = sharedFactory(t, program, name)
			}
			testsuite.SnapshotterSuite(t, known(name), daemons)
		})
	}
}

// known returns a name by which the suite knows that directories of lower layers cannot be renamed,
// as on everything that the kernel's overlay stacks.
func known(name string) string {
	if name == "stargz" || name == "nydus" || name == "overlaybd" {
		return "overlayfs"
	}
	return name
}
