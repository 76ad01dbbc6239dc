// Command bench measures the calls of a snapshots service, that of Lamina or that of containerd.
//
// It prints one JSON object, in seconds: the median of each call made one after another, and the
// 99th percentile of all calls that many clients make at once, each on a connection of its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const (
	// layers is how many committed snapshots there are from the start, in chains as images have.
	layers = 100
	chain  = 10
	// listEvery spreads the calls of List, which take longer than the others.
	listEvery = 10
)

var (
	address     = flag.String("address", "", "the service's unix socket")
	snapshotter = flag.String("snapshotter", "overlayfs", "the snapshotter to ask for")
	rounds      = flag.Int("rounds", 300, "how often each call is made one after another")
	clients     = flag.Int("clients", 32, "how many clients call at once")
	clientRound = flag.Int("client-rounds", 20, "how many snapshots each of those makes and removes")
)

// samples are the durations of calls, by the name of the call.
type samples map[string][]time.Duration

// client makes calls on one connection and keeps how long each took.
type client struct {
	ctx  context.Context
	api  snapshotsapi.SnapshotsClient
	took samples
}

func main() {
	log.SetFlags(0)
	flag.Parse()
	result, err := measure()
	if err != nil {
		log.Fatalf("bench: %v", err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatalf("bench: %v", err)
	}
}

func measure() (map[string]float64, error) {
	one, closeConn, err := connect()
	if err != nil {
		return nil, err
	}
	defer closeConn()
	run := fmt.Sprintf("run-%d", time.Now().UnixNano())
	parent, err := one.fill(run)
	if err != nil {
		return nil, fmt.Errorf("fill: %w", err)
	}
	if err := one.serial(run+"-warm-up", parent, *rounds/10+1); err != nil {
		return nil, err
	}
	clear(one.took)
	if err := one.serial(run+"-serial", parent, *rounds); err != nil {
		return nil, err
	}
	together, err := parallel(run, parent)
	if err != nil {
		return nil, err
	}
	result := map[string]float64{"p99": percentile(together, 0.99)}
	for call, took := range one.took {
		result[call] = percentile(took, 0.5)
	}
	return result, one.empty(run)
}

func connect() (*client, func() error, error) {
	conn, err := grpc.NewClient(
		"unix://"+*address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	)
	if err != nil {
		return nil, nil, err
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), "containerd-namespace", "bench")
	return &client{ctx, snapshotsapi.NewSnapshotsClient(conn), samples{}}, conn.Close, nil
}

// layerName numbers the snapshots that fill makes.
func layerName(run string, number int) string { return fmt.Sprintf("%s-layer-%d", run, number) }

// fill makes the snapshots that are there all the time; it returns the top of a chain of them.
func (c *client) fill(run string) (string, error) {
	for number := range layers {
		parent := ""
		if number%chain > 0 {
			parent = layerName(run, number-1)
		}
		name := layerName(run, number)
		if err := errors.Join(c.prepare(name+"-active", parent), c.commit(name, name+"-active")); err != nil {
			return "", err
		}
	}
	return layerName(run, layers-1), nil
}

// empty removes what fill has made.
func (c *client) empty(run string) error {
	for number := layers - 1; number >= 0; number-- {
		if err := c.remove(layerName(run, number)); err != nil {
			return err
		}
	}
	return nil
}

// serial goes with one snapshot after another through its life.
func (c *client) serial(prefix, parent string, count int) error {
	for number := range count {
		if err := c.life(fmt.Sprintf("%s-%d", prefix, number), parent); err != nil {
			return err
		}
		if number%listEvery == 0 {
			if err := c.list(); err != nil {
				return err
			}
		}
	}
	return nil
}

// parallel lets many clients do the same at once and returns how long each of their calls took.
func parallel(run, parent string) ([]time.Duration, error) {
	var (
		wait   sync.WaitGroup
		mutex  sync.Mutex
		all    []time.Duration
		failed error
	)
	for number := range *clients {
		wait.Go(func() {
			took, err := oneOfMany(fmt.Sprintf("%s-client-%d", run, number), parent)
			mutex.Lock()
			defer mutex.Unlock()
			all = append(all, took...)
			failed = errors.Join(failed, err)
		})
	}
	wait.Wait()
	return all, failed
}

func oneOfMany(prefix, parent string) ([]time.Duration, error) {
	c, closeConn, err := connect()
	if err != nil {
		return nil, err
	}
	defer closeConn()
	// The first call makes the connection.
	if err := c.stat(parent); err != nil {
		return nil, err
	}
	clear(c.took)
	for number := range *clientRound {
		if err := c.life(fmt.Sprintf("%s-%d", prefix, number), parent); err != nil {
			return nil, err
		}
	}
	var all []time.Duration
	for _, took := range c.took {
		all = append(all, took...)
	}
	return all, nil
}

// life is what unpacking a layer and starting a container on it ask for.
func (c *client) life(name, parent string) error {
	active, view := name+"-active", name+"-view"
	for _, call := range []func() error{
		func() error { return c.prepare(active, parent) },
		func() error { return c.stat(active) },
		func() error { return c.mounts(active) },
		func() error { return c.commit(name, active) },
		func() error { return c.view(view, name) },
		func() error { return c.remove(view) },
		func() error { return c.remove(name) },
	} {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

// timed makes a call and keeps how long it took.
func (c *client) timed(name string, call func() error) error {
	start := time.Now()
	if err := call(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c.took[name] = append(c.took[name], time.Since(start))
	return nil
}

func (c *client) prepare(key, parent string) error {
	return c.timed("prepare", func() error {
		_, err := c.api.Prepare(c.ctx, &snapshotsapi.PrepareSnapshotRequest{
			Snapshotter: *snapshotter, Key: key, Parent: parent,
			Labels: map[string]string{"containerd.io/gc.root": "bench"},
		})
		return err
	})
}

func (c *client) view(key, parent string) error {
	return c.timed("view", func() error {
		_, err := c.api.View(c.ctx, &snapshotsapi.ViewSnapshotRequest{
			Snapshotter: *snapshotter, Key: key, Parent: parent,
			Labels: map[string]string{"containerd.io/gc.root": "bench"},
		})
		return err
	})
}

func (c *client) commit(name, key string) error {
	return c.timed("commit", func() error {
		_, err := c.api.Commit(c.ctx, &snapshotsapi.CommitSnapshotRequest{
			Snapshotter: *snapshotter, Name: name, Key: key,
			Labels: map[string]string{"containerd.io/gc.root": "bench"},
		})
		return err
	})
}

func (c *client) remove(key string) error {
	return c.timed("remove", func() error {
		request := &snapshotsapi.RemoveSnapshotRequest{Snapshotter: *snapshotter, Key: key}
		_, err := c.api.Remove(c.ctx, request)
		return err
	})
}

func (c *client) stat(key string) error {
	return c.timed("stat", func() error {
		request := &snapshotsapi.StatSnapshotRequest{Snapshotter: *snapshotter, Key: key}
		_, err := c.api.Stat(c.ctx, request)
		return err
	})
}

func (c *client) mounts(key string) error {
	return c.timed("mounts", func() error {
		request := &snapshotsapi.MountsRequest{Snapshotter: *snapshotter, Key: key}
		_, err := c.api.Mounts(c.ctx, request)
		return err
	})
}

func (c *client) list() error {
	return c.timed("list", func() error {
		request := &snapshotsapi.ListSnapshotsRequest{Snapshotter: *snapshotter}
		stream, err := c.api.List(c.ctx, request)
		if err != nil {
			return err
		}
		count := 0
		for {
			message, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			count += len(message.Info)
		}
		if count < layers {
			return fmt.Errorf("%d snapshots, not %d", count, layers)
		}
		return nil
	})
}

func percentile(took []time.Duration, share float64) float64 {
	slices.Sort(took)
	return took[int(float64(len(took)-1)*share)].Seconds()
}
