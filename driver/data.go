package driver

import (
	"errors"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
)

// Data is what a provider keeps with a config: D-Bus values as Go values, of
// the types that valid.Data has. Every program of the owner's uid can read it.
type Data map[string]any

// check refuses other types, and strings that must not reach logs and files.
func (d Data) check() error {
	err := valid.Data(d)
	if errors.Is(err, valid.ErrTooLarge) {
		return Errorf(KindLimitExceeded, "%v", err)
	}
	return refused(err)
}
