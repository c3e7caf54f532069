// Deviceplugin offers /dev/kvm to a kubelet as devices.kubevirt.io/kvm, the way
// KubeVirt's virt-handler does: any number of pods may have it at once.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// atOnce is how many pods may have the device at the same time.
const atOnce = 100

type plugin struct {
	api.UnimplementedDevicePluginServer
}

func (plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

func (plugin) ListAndWatch(_ *api.Empty, s grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	devices := make([]*api.Device, atOnce)
	for i := range devices {
		devices[i] = &api.Device{ID: fmt.Sprintf("kvm%d", i), Health: api.Healthy}
	}
	if err := s.Send(&api.ListAndWatchResponse{Devices: devices}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

func (plugin) Allocate(_ context.Context, r *api.AllocateRequest) (*api.AllocateResponse, error) {
	given := &api.AllocateResponse{}
	for range r.ContainerRequests {
		given.ContainerResponses = append(given.ContainerResponses, &api.ContainerAllocateResponse{
			Devices: []*api.DeviceSpec{{HostPath: "/dev/kvm", ContainerPath: "/dev/kvm", Permissions: "mrw"}},
		})
	}
	return given, nil
}

func run() error {
	const name = "kvm.sock"
	l, err := net.Listen("unix", filepath.Join(api.DevicePluginPath, name))
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	api.RegisterDevicePluginServer(s, plugin{})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	kubelet, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer kubelet.Close()
	if _, err := api.NewRegistrationClient(kubelet).Register(context.Background(), &api.RegisterRequest{
		Version: api.Version, Endpoint: name, ResourceName: "devices.kubevirt.io/kvm",
	}); err != nil {
		return err
	}
	return <-ended
}

func main() { log.Fatal(run()) }
