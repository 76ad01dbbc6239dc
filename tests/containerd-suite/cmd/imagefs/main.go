// Command imagefs asks a CRI runtime, as kubelet does, for the filesystems that hold its images.
//
// It prints ImageFsInfo's answer as JSON. With -pull IMAGE it first lets the runtime pull one. A
// runtime that has just been started is waited for.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const startTimeout = 60 * time.Second

func main() {
	log.SetFlags(0)
	address := flag.String("address", "", "the runtime's unix socket")
	image := flag.String("pull", "", "an image to pull before")
	flag.Parse()
	if err := run(*address, *image); err != nil {
		log.Fatalf("imagefs: %v", err)
	}
}

func run(address, image string) error {
	conn, err := grpc.NewClient(
		"unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, service := context.Background(), cri.NewImageServiceClient(conn)
	if err := waitUntilInitialized(ctx, service); err != nil {
		return err
	}
	if image != "" {
		request := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}}
		if _, err := service.PullImage(ctx, request); err != nil {
			return err
		}
	}
	answer, err := service.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		return err
	}
	text, err := protojson.Marshal(answer)
	if err != nil {
		return err
	}
	fmt.Println(string(text))
	return nil
}

// waitUntilInitialized returns once CRI takes calls: containerd begins to serve before that, and
// 1.6 has no code of its own for what it answers until then.
func waitUntilInitialized(ctx context.Context, service cri.ImageServiceClient) error {
	deadline := time.Now().Add(startTimeout)
	for {
		_, err := service.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
		if err == nil || !strings.Contains(err.Error(), "not initialized") || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
