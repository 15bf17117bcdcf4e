package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) capture() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "capture NAME",
		Short: "Record the packets of a VPN",
		Long: `Record the packets that pass through a VPN, both directions, as pcapng, until
interrupted or disconnected. Wireshark and tcpdump read it. Names, addresses and
whatever is not encrypted can be read in it: keep it to yourself.`,
		Example: `  vpnctl capture Work -w work.pcapng
  vpnctl capture Work | wireshark -k -i -`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeName(false),
		RunE: c.do(0, func(ctx context.Context, d *client.Client, args []string) error {
			if file == "-" && c.out.terminal {
				return usage(errors.New("packets are not for a terminal: pass -w FILE, or a pipe"))
			}
			return c.record(ctx, d, args[0], file)
		}),
	}
	cmd.Flags().StringVarP(&file, "write", "w", "-", "write to `FILE`; - is the standard output")
	return cmd
}

// record makes the file only when there is something to be in it.
func (c *cli) record(ctx context.Context, d *client.Client, name, file string) (err error) {
	stream, err := c.openCapture(ctx, d, name)
	if err != nil {
		return err
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	to := c.out.w
	if file != "-" {
		f, err := openPrivate(file)
		if err != nil {
			return err
		}
		defer f.Close()
		to = f
	}
	var done recorded
	err = done.copy(to, stream)
	fmt.Fprintf(c.stderr, "%d packets, %d bytes; %d packets missing\n", done.packets, done.bytes, done.missing)
	if errors.Is(err, os.ErrClosed) && ctx.Err() != nil {
		return nil // an interrupt is how it usually ends
	}
	return err
}

// openPrivate opens a file for what nobody else may read. One that is there
// already is emptied once it is as private as a new one. Devices and pipes stay
// as they are.
func openPrivate(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		err = f.Chmod(0o600)
		if err == nil {
			err = f.Truncate(0)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (c *cli) openCapture(ctx context.Context, d *client.Client, name string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	defer ui.Ask(ctx, c.bus)() // and not as long as packets come
	info, err := resolve(ctx, d, name)
	if err != nil {
		return nil, err
	}
	p, err := d.Config(info.Path).Properties(ctx)
	if err != nil {
		return nil, err
	}
	if p.Session == "" {
		return nil, &ui.Error{Code: ui.ExitFailed, Err: fmt.Errorf("%s is not connected", info.Name), Hint: "connect it: vpnctl connect " + info.Name}
	}
	return d.Session(p.Session).OpenCapture(ctx)
}

// recorded tells what a capture has.
type recorded struct{ packets, bytes, missing uint64 }

const (
	packetBlock = 6 // of pcapng: enhanced packet
	dropCount   = 4 // its option: packets that are missing before it

	maxBlock = 1 << 20
)

// copy copies whole blocks, as they come, so that a file is in order wherever
// it ends.
func (r *recorded) copy(to io.Writer, stream io.Reader) error {
	in := bufio.NewReaderSize(stream, maxBlock)
	for {
		head, err := in.Peek(8)
		switch {
		case errors.Is(err, io.EOF) && len(head) == 0:
			return nil
		case err != nil:
			return fmt.Errorf("cannot read the packets: %w", err)
		}
		length := int(binary.LittleEndian.Uint32(head[4:]))
		if length < 12 || length > maxBlock {
			return fmt.Errorf("the stream has a block of %d bytes", length)
		}
		block, err := in.Peek(length)
		if err != nil {
			return fmt.Errorf("cannot read the packets: %w", err)
		}
		if _, err := to.Write(block); err != nil {
			return fmt.Errorf("cannot write the packets: %w", err)
		}
		r.count(block)
		_, _ = in.Discard(length) // it is there
	}
}

func (r *recorded) count(block []byte) {
	if binary.LittleEndian.Uint32(block) != packetBlock || len(block) < 32 {
		return
	}
	r.packets++
	r.bytes += uint64(binary.LittleEndian.Uint32(block[24:]))
	captured := int(binary.LittleEndian.Uint32(block[20:]))
	if captured > len(block)-32 {
		return
	}
	options := block[min(28+(captured+3)&^3, len(block)-4) : len(block)-4]
	for len(options) >= 4 {
		option, n := binary.LittleEndian.Uint16(options), int(binary.LittleEndian.Uint16(options[2:]))
		if option == dropCount && n == 8 && len(options) >= 12 {
			r.missing += binary.LittleEndian.Uint64(options[4:])
		}
		options = options[min(4+(n+3)&^3, len(options)):]
	}
}
