package wgtun

import (
	"sync"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// packets is the format "packet": a message is a packet, and moves between the
// channel and wireguard-go's buffers without a copy.
type packets struct {
	channel *client.Channel
	rx, tx  slots
}

// slots are what wireguard-go's buffers are from the offset on. They are kept,
// so that no call allocates.
type slots struct {
	mu   sync.Mutex
	list [][]byte
}

func newPackets(ch *client.Channel) *packets {
	return &packets{
		channel: ch,
		rx:      slots{list: make([][]byte, 0, batchSize)},
		tx:      slots{list: make([][]byte, 0, batchSize)},
	}
}

func (p *packets) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	p.rx.mu.Lock()
	defer p.rx.mu.Unlock()
	p.rx.list = p.rx.list[:0]
	for _, b := range bufs[:min(len(bufs), batchSize)] {
		p.rx.list = append(p.rx.list, b[offset:])
	}
	return p.channel.ReadPackets(p.rx.list, sizes)
}

func (p *packets) write(bufs [][]byte, offset int) (int, error) {
	p.tx.mu.Lock()
	defer p.tx.mu.Unlock()
	p.tx.list = p.tx.list[:0]
	for _, b := range bufs {
		if len(b) > offset {
			p.tx.list = append(p.tx.list, b[offset:])
		}
	}
	return p.channel.WritePackets(p.tx.list)
}
