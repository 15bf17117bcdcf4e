package main

import (
	"os"

	"github.com/coreos/go-systemd/v22/activation"
)

// passed are the descriptors that systemd has passed, by name: the sockets of
// vpnproviderd.socket, and what was put into the descriptor store.
type passed map[string][]*os.File

// takePassed takes them over from the environment, once a process. They are not
// inherited by programs that are started. Those that nobody takes stay open
// until close.
func takePassed() passed {
	p := make(passed)
	for _, f := range activation.Files(true) {
		p[f.Name()] = append(p[f.Name()], f)
	}
	return p
}

// take gives those of a name, in their order, to the caller, who owns them from
// then on. The next call for the same name gives none.
func (p passed) take(name string) []*os.File {
	files := p[name]
	delete(p, name)
	return files
}

// close closes what nobody took.
func (p passed) close() {
	for name := range p {
		for _, f := range p.take(name) {
			f.Close()
		}
	}
}
