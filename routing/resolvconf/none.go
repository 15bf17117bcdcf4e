package resolvconf

import (
	"context"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// None is a routing.Resolver that leaves the host's DNS alone, for hosts whose
// administrator sees to it.
type None struct{}

// Set does nothing.
func (None) Set(context.Context, routing.Resolution) error { return nil }

// Revert does nothing.
func (None) Revert(context.Context) error { return nil }

// Leftover is false.
func (None) Leftover(context.Context) (bool, error) { return false, nil }

// PerLink is false.
func (None) PerLink() bool { return false }

// Asker is not known.
func (None) Asker(context.Context) (uint32, error) { return 0, nil }
