package dbus_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Of a session with lists as long as they may be, a user asks for everything as
// often as calls may be in flight. That many answers are not made at a time.
func TestLargeAnswers(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	lists := dict{"address": godbus.MakeVariant("2001:db8::2/64")}
	for n, key := range []string{"inclusionList", "exclusionList"} {
		blocks := make([]string, 16384)
		for i := range blocks {
			blocks[i] = fmt.Sprintf("2001:db8:%x:%x::/64", 0x1000*(n+1), i)
		}
		lists[key] = godbus.MakeVariant(blocks)
	}
	p.must(p.session(session, "SetParameters", lists))

	all := managerCall("GetAll", wire.SessionInterface)
	all.Headers[godbus.FieldPath] = godbus.MakeVariant(session)
	all.Headers[godbus.FieldInterface] = godbus.MakeVariant(wire.PropertiesInterface)
	last := managerCall("NoSuchMethod")
	var service string
	p.must(p.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, wire.BusName), &service)
	const connections, calls = 6, 14
	var conns []*net.UnixConn
	for range connections {
		conns = append(conns, b.bus.DialRaw(t, harness.Alice))
	}
	before := heap()
	peak, stop := peakHeap()
	var asked sync.WaitGroup
	for _, conn := range conns {
		asked.Go(func() {
			conn.SetDeadline(time.Now().Add(3 * harness.Timeout))
			for n := range calls {
				if _, err := conn.Write(harness.Encode(t, all, uint32(n+2))); err != nil {
					t.Error(err)
				}
			}
			if _, err := conn.Write(harness.Encode(t, last, 100)); err != nil {
				t.Error(err)
			}
			if err := readUntilError(t, conn, service); err != nil {
				t.Error(err)
			}
		})
	}
	asked.Wait()
	stop()
	grown := (*peak - min(before, *peak)) >> 20
	if t.Logf("%d answers took %d MiB", connections*calls, grown); grown > 64 {
		t.Error("that is too much")
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// peakHeap notes the most memory that is in use, until stop.
func peakHeap() (peak *uint64, stop func()) {
	peak = new(uint64)
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ended:
				return
			case <-time.After(20 * time.Millisecond):
				*peak = max(*peak, heap())
			}
		}
	}()
	return peak, func() {
		close(ended)
		<-done
	}
}

// readUntilError reads and forgets until a call is answered with an error. It
// answers the service's pings, as libraries do.
func readUntilError(t *testing.T, conn *net.UnixConn, service string) error {
	t.Helper()
	for {
		var head [16]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return err
		}
		body, serial, fields := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[8:]), binary.LittleEndian.Uint32(head[12:])
		if _, err := io.CopyN(io.Discard, conn, int64((fields+7)&^7+body)); err != nil {
			return err
		}
		if godbus.Type(head[1]) == godbus.TypeError {
			return nil
		}
		if godbus.Type(head[1]) == godbus.TypeMethodCall {
			pong := &godbus.Message{Type: godbus.TypeMethodReply, Headers: map[godbus.HeaderField]godbus.Variant{
				godbus.FieldDestination: godbus.MakeVariant(service),
				godbus.FieldReplySerial: godbus.MakeVariant(serial),
			}}
			if _, err := conn.Write(harness.Encode(t, pong, 1000)); err != nil {
				return err
			}
		}
	}
}

// readUntil reads and forgets until the text has come.
func readUntil(r io.Reader, text string) error {
	var last []byte
	chunk := make([]byte, 64<<10)
	for {
		n, err := r.Read(chunk)
		if last = append(last, chunk[:n]...); bytes.Contains(last, []byte(text)) {
			return nil
		}
		if err != nil {
			return err
		}
		last = append([]byte{}, last[max(0, len(last)-len(text)):]...)
	}
}

// A call that is longer than any that is of use is not decoded: there would be
// twenty times as much of it.
func TestLongCalls(t *testing.T) {
	b := newBench(t)
	truths := make([]godbus.Variant, 250<<10)
	for i := range truths {
		truths[i] = godbus.MakeVariant(true)
	}
	data := dict{"data": godbus.MakeVariant(dict{"x": godbus.MakeVariant(truths)})}
	long := harness.Encode(t, managerCall("CreateConfig", app, "Long", data), 2)
	conn := b.bus.DialRaw(t, harness.Alice)
	conn.SetDeadline(time.Now().Add(3 * harness.Timeout))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const calls = 5
	for range calls {
		if _, err := conn.Write(long); err != nil {
			t.Fatal(err)
		}
		if err := readUntil(conn, wire.ErrLimitExceeded); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > calls {
		t.Errorf("%d calls of %d KiB took %d MiB", calls, len(long)>>10, took)
	}
}
