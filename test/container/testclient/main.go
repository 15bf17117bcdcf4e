// Testclient is a VPN app for tests in a container: it registers, makes a
// config, connects it and sets the parameters that it reads from its input, one
// JSON object a line. After each line it says how that went. The end of its
// input, or the word "disconnect", ends the session. Behind its tunnel is a DNS
// server, at every address, that knows all names.
//
// With the argument "flow", what is behind its tunnel sends every UDP packet back
// to its sender, and the word "count" has it say how many packets there were.
//
// With "messages" it tells what the platform says, with the time in microseconds
// since 1970, and the end of the session; with "acknowledge" besides, it answers
// suspend. With "stream" it brings its channel to the packet socket.
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
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const app = "com.example.Test"

func main() {
	if err := run(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testclient:", err)
		os.Exit(1)
	}
}

// told says whether the program has an argument.
func told(argument string) bool { return slices.Contains(os.Args[1:], argument) }

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
	config, err := provider.CreateConfig(ctx, "Test", client.ConfigOptions{})
	if errors.Is(err, client.ErrAlreadyExists) {
		config, err = provider.FindConfig(ctx, "Test")
	}
	if err != nil {
		return err
	}
	session, err := config.Connect(ctx)
	if err != nil {
		return err
	}
	channel, err := open(ctx, session, told("stream"))
	if err != nil {
		return err
	}
	defer channel.Close()
	var f flow
	serve := serveDNS
	if told("flow") {
		serve = f.serve
	}
	go func() { fmt.Fprintln(out, "channel ended:", serve(channel)) }()
	if told("messages") {
		go func() {
			tellMessages(ctx, session, out)
			fmt.Fprintln(out, "over:", provider.Err())
		}()
	}
	fmt.Fprintln(out, "session", session.Path(), config.Path())
	if err := obey(ctx, in, out, session, &f); err != nil {
		return err
	}
	if err := config.Disconnect(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "disconnected")
	return nil
}

// obey does what it is told line by line.
func obey(ctx context.Context, in io.Reader, out io.Writer, session *client.Session, f *flow) error {
	for lines := bufio.NewScanner(in); lines.Scan() && lines.Text() != "disconnect"; {
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
			fmt.Fprintf(out, "refused: %s: %v\n", errorName(err), err)
			continue
		}
		fmt.Fprintln(out, "applied")
	}
	return nil
}

func tellMessages(ctx context.Context, session *client.Session, out io.Writer) {
	for m := range session.Messages() {
		fmt.Fprintf(out, "message %s %q at %d\n", m.Kind, m.Error, time.Now().UnixMicro())
		if told("acknowledge") && m.Kind == client.MessageSuspend {
			if err := session.Acknowledge(ctx, m.Kind); err != nil {
				fmt.Fprintln(out, "not acknowledged:", err)
			}
		}
	}
}

func errorName(err error) string {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Name
	}
	return ""
}
