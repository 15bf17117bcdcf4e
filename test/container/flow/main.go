// Flow is a VPN app for tests in a container that has packets move: it
// registers, connects a config, sends every UDP packet that comes out of its
// tunnel back to its sender, and counts. From its input it reads one JSON object
// of parameters a line; "count" has it say how many packets there were; the end
// of its input ends it. It says everything that it is told of its session.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const app = "com.example.Flow"

func main() {
	if err := run(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "flow:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, in io.Reader, out io.Writer) error {
	c, err := client.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	provider, err := c.RegisterProvider(ctx, app, client.ProviderOptions{})
	if err != nil {
		return err
	}
	config, err := provider.CreateConfig(ctx, "Flow", client.ConfigOptions{})
	if errors.Is(err, client.ErrAlreadyExists) {
		config, err = provider.FindConfig(ctx, "Flow")
	}
	if err != nil {
		return err
	}
	session, err := config.Connect(ctx)
	if err != nil {
		return err
	}
	channel, err := session.OpenChannel(ctx, client.ChannelOptions{})
	if err != nil {
		return err
	}
	defer channel.Close()
	var f flow
	go func() { fmt.Fprintln(out, "channel ended:", f.run(channel)) }()
	go func() {
		for m := range session.Messages() {
			fmt.Fprintf(out, "told %s %q\n", m.Kind, m.Error)
		}
		fmt.Fprintf(out, "over: %v\n", provider.Err())
	}()
	fmt.Fprintln(out, "session", session.Path(), config.Path())
	for lines := bufio.NewScanner(in); lines.Scan(); {
		if lines.Text() == "count" {
			fmt.Fprintf(out, "counted %d %d %s\n", f.packets[0].Load(), f.packets[1].Load(), time.Duration(f.gap.Swap(0)).Round(time.Millisecond))
			continue
		}
		var p client.Parameters
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return err
		}
		_, err := session.SetParameters(ctx, p)
		if err == nil {
			err = session.NotifyConnected(ctx)
		}
		if err != nil {
			fmt.Fprintln(out, "refused:", err)
			continue
		}
		fmt.Fprintln(out, "applied")
	}
	return nil
}

// flow is what went through the tunnel.
type flow struct {
	packets [2]atomic.Int64 // IPv4 and IPv6
	gap     atomic.Int64    // nanoseconds, the longest between two packets
}

func (f *flow) run(channel *client.Channel) error {
	b := make([]byte, 1<<16)
	var last time.Time
	for {
		n, err := channel.Read(b)
		if err != nil {
			return err
		}
		family, back := turn(b[:n])
		if back == nil {
			continue
		}
		now := time.Now()
		if gap := int64(now.Sub(last)); !last.IsZero() && gap > f.gap.Load() {
			f.gap.Store(gap)
		}
		last = now
		f.packets[family].Add(1)
		if _, err := channel.Write(back); err != nil {
			return err
		}
	}
}

// turn exchanges source and destination of a UDP packet, which no checksum
// notices. It gives nil for others.
func turn(p []byte) (family int, back []byte) {
	const udp = 17
	at, size, header := 12, 4, 20
	if len(p) > 0 && p[0]>>4 == 6 {
		family, at, size, header = 1, 8, 16, 40
	}
	protocol := 9 - 3*family
	if len(p) < header+8 || family == 0 && p[0] != 0x45 || p[protocol] != udp {
		return 0, nil
	}
	back = slices.Clone(p)
	copy(back[at:], p[at+size:at+2*size])
	copy(back[at+size:], p[at:at+size])
	copy(back[header:], p[header+2:header+4])
	copy(back[header+2:], p[header:header+2])
	return family, back
}
