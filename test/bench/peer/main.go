// Peer is every process that test/bench measures with, apart from the daemon
// and the bus. Each role is one process, so that each has its own processor
// time:
//
//	send, receive         one TCP stream and its end
//	blast, sink           datagrams, as many as go out, and their end
//	ping                  round trips to the kernel of the other side
//	copy                  a root client: moves packets between two TUNs
//	provide               an app on the daemon: between its session and a TUN
//	wireguard             wireguard-go on its own TUN, or as an app
//	push, pull            messages through a socket pair, and its end
//	connect               an app that is connected again and again
//
// A role that measures prints its bench.Result as one line of JSON; one that
// others wait for prints "ready" when they may start.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/vpnprovider/vpnproviderd/test/bench"
)

type options struct {
	address string
	time    time.Duration
	size    int
	count   int
	pids    []int
	sender  int
	bus     string
	mode    string
	peer    string
}

// errNoResult is a role's that ended without anything to measure.
var errNoResult = errors.New("no result")

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: peer ROLE [options]")
	}
	role, ok := map[string]func(options) (bench.Result, error){
		"send":      send,
		"receive":   receive,
		"blast":     blast,
		"sink":      sink,
		"ping":      ping,
		"copy":      copyPackets,
		"provide":   provide,
		"wireguard": wireguard,
		"push":      push,
		"pull":      pull,
		"connect":   connect,
	}[os.Args[1]]
	if !ok {
		log.Fatalf("unknown role %q", os.Args[1])
	}
	o, err := parse(os.Args[2:])
	if err != nil {
		log.Fatal(err)
	}
	r, err := role(o)
	switch {
	case err == nil:
		err = json.NewEncoder(os.Stdout).Encode(r)
	case errors.Is(err, errNoResult):
		err = nil
	}
	if err != nil {
		log.Fatalf("%s: %v", os.Args[1], err)
	}
}

func parse(args []string) (o options, err error) {
	f := pflag.NewFlagSet("peer", pflag.ContinueOnError)
	f.StringVar(&o.address, "address", "", "IPv4 `ADDRESS` and port of the receiving end")
	f.DurationVar(&o.time, "time", 2*time.Second, "how long it is measured")
	f.IntVar(&o.size, "size", 64, "`BYTES` of payload of a datagram or message")
	f.IntVar(&o.count, "count", 200, "how many round trips or connections")
	f.IntVar(&o.sender, "sender", 0, "`PID` of the blast whose datagrams count")
	f.StringVar(&o.bus, "bus", "", "`ADDRESS` of the bus")
	f.StringVar(&o.mode, "mode", "", "how packets are moved")
	f.StringVar(&o.peer, "peer", "", "wireguard-go's configuration")
	pids := f.String("pids", "", "`PID,…` of the processes whose processor time counts")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for _, text := range strings.FieldsFunc(*pids, func(r rune) bool { return r == ',' }) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return o, err
		}
		o.pids = append(o.pids, pid)
	}
	o.pids = append(o.pids, os.Getpid())
	return o, nil
}

func ready() { fmt.Println("ready") }
