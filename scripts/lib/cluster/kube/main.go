// The programs of Kubernetes in one, chosen by the first argument.
package main

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	sched "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	rand.Seed(time.Now().UnixNano())
	all := map[string]func() *cobra.Command{
		"kube-apiserver": apiserver.NewAPIServerCommand, "kube-controller-manager": kcm.NewControllerManagerCommand,
		"kube-proxy": proxy.NewProxyCommand, "kubelet": kubelet.NewKubeletCommand,
		"kube-scheduler": func() *cobra.Command { return sched.NewSchedulerCommand() },
	}
	pflag.CommandLine.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	name := filepath.Base(os.Args[0])
	make, ok := all[name]
	if !ok && len(os.Args) > 1 {
		make, ok = all[os.Args[1]]
		os.Args = os.Args[1:]
	}
	if !ok {
		fmt.Fprintln(os.Stderr, "kube: which?")
		os.Exit(2)
	}
	command := make()
	logs.InitLogs()
	defer logs.FlushLogs()
	if err := command.Execute(); err != nil {
		os.Exit(1)
	}
}
