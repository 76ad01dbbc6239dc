package suite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	startTimeout = 120 * time.Second
	stopTimeout  = 60 * time.Second
)

// daemon is one `lamina serve` on a root of its own.
type daemon struct {
	program string
	root    string
	address string
	command *exec.Cmd
	log     bytes.Buffer
	ended   chan error
}

// startDaemon returns once the daemon accepts connections. Its socket is put beside root.
func startDaemon(program, root string) (*daemon, error) {
	d := &daemon{
		program: program,
		root:    root,
		address: filepath.Join(filepath.Dir(root), "lamina.sock"),
		ended:   make(chan error, 1),
	}
	d.command = exec.Command(program, "--root", root, "serve", "--address", d.address)
	d.command.Stdout = &d.log
	d.command.Stderr = &d.log
	if err := d.command.Start(); err != nil {
		return nil, err
	}
	go func() { d.ended <- d.command.Wait() }()
	if err := d.waitUntilItListens(); err != nil {
		d.command.Process.Kill()
		return nil, err
	}
	return d, nil
}

func (d *daemon) waitUntilItListens() error {
	deadline := time.After(startTimeout)
	for {
		if conn, err := net.Dial("unix", d.address); err == nil {
			return conn.Close()
		}
		select {
		case err := <-d.ended:
			return fmt.Errorf("lamina serve ended: %w\n%s", err, &d.log)
		case <-deadline:
			return fmt.Errorf("lamina serve does not listen after %s", startTimeout)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stop asks the daemon to end, which it must do with success, and lets fsck look at what it leaves.
func (d *daemon) stop() error {
	if err := d.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-d.ended:
		if err != nil {
			return fmt.Errorf("lamina serve: %w\n%s", err, &d.log)
		}
	case <-time.After(stopTimeout):
		d.command.Process.Kill()
		return fmt.Errorf("lamina serve has not ended %s after SIGTERM\n%s", stopTimeout, &d.log)
	}
	if _, err := os.Lstat(d.address); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("lamina serve has left its socket: %v", err)
	}
	found, err := exec.Command(d.program, "--root", d.root, "fsck").CombinedOutput()
	if err != nil || len(found) > 0 {
		return fmt.Errorf("lamina fsck: %v\n%s", err, found)
	}
	return nil
}

// snapshotter returns containerd's proxy client for one of the daemon's snapshotters, and what
// closes its connection.
func (d *daemon) snapshotter(name string) (snapshots.Snapshotter, func() error, error) {
	conn, err := grpc.NewClient(
		"unix://"+d.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	)
	if err != nil {
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name), conn.Close, nil
}

// factory makes a fresh daemon on the directory that the suite gives each of its tests.
func factory(program, name string) testsuite.SnapshotterFunc {
	return func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		d, err := startDaemon(program, root)
		if err != nil {
			return nil, nil, err
		}
		snapshotter, closeConn, err := d.snapshotter(name)
		if err != nil {
			return nil, nil, errors.Join(err, d.stop())
		}
		return snapshotter, func() error { return errors.Join(closeConn(), d.stop()) }, nil
	}
}

// sharedFactory makes one daemon, which ends with t, for all tests of the suite. Each finds it empty.
func sharedFactory(t *testing.T, program, name string) testsuite.SnapshotterFunc {
	d, err := startDaemon(program, filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	snapshotter, closeConn, err := d.snapshotter(name)
	if err != nil {
		t.Fatal(errors.Join(err, d.stop()))
	}
	t.Cleanup(func() {
		if err := errors.Join(closeConn(), d.stop()); err != nil {
			t.Error(err)
		}
	})
	return func(ctx context.Context, _ string) (snapshots.Snapshotter, func() error, error) {
		return snapshotter, func() error { return removeAll(ctx, snapshotter) }, nil
	}
}

// removeAll removes every snapshot, those on top of others first, and has their storage freed.
func removeAll(ctx context.Context, snapshotter snapshots.Snapshotter) error {
	parents := map[string]string{}
	err := snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		parents[info.Name] = info.Parent
		return nil
	})
	if err != nil {
		return err
	}
	for len(parents) > 0 {
		below := slices.Collect(maps.Values(parents))
		for name := range parents {
			if slices.Contains(below, name) {
				continue
			}
			if err := snapshotter.Remove(ctx, name); err != nil {
				return err
			}
			delete(parents, name)
		}
	}
	return snapshotter.(snapshots.Cleaner).Cleanup(ctx)
}
