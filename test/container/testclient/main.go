// Testclient is a VPN app for tests in a container: it registers, makes a
// config, connects it and sets the parameters that it reads from its input, one
// JSON object a line. After each line it says how that went. The end of its
// input, or the word "disconnect", ends the session. Behind its tunnel is a DNS
// server, at every address, that knows all names.
//
// With the argument "messages" it tells what the platform says, with the
// time in microseconds since 1970; with "acknowledge" besides, it answers suspend.
// With "stream" it brings its channel to the packet socket.
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
	channel, err := open(ctx, session, slices.Contains(os.Args[1:], "stream"))
	if err != nil {
		return err
	}
	defer channel.Close()
	go serveDNS(channel)
	if args := os.Args[1:]; slices.Contains(args, "messages") {
		go tellMessages(ctx, session, out, slices.Contains(args, "acknowledge"))
	}
	fmt.Fprintln(out, "session")
	for lines := bufio.NewScanner(in); lines.Scan() && lines.Text() != "disconnect"; {
		var p client.Parameters
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return err
		}
		if _, err := session.SetParameters(ctx, p); err != nil {
			fmt.Fprintf(out, "refused: %s: %v\n", errorName(err), err)
			continue
		}
		if err := session.NotifyConnected(ctx); err != nil {
			return err
		}
		fmt.Fprintln(out, "applied")
	}
	if err := config.Disconnect(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "disconnected")
	return nil
}

func tellMessages(ctx context.Context, session *client.Session, out io.Writer, acknowledge bool) {
	for m := range session.Messages() {
		fmt.Fprintf(out, "message %s at %d\n", m.Kind, time.Now().UnixMicro())
		if acknowledge && m.Kind == client.MessageSuspend {
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
