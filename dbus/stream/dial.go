package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// dial connects to the first address of the list that answers.
func dial(ctx context.Context, addresses string) (*net.UnixConn, error) {
	if addresses == "" {
		addresses = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
	}
	if addresses == "" {
		addresses = "unix:path=/run/dbus/system_bus_socket"
	}
	var failed []error
	for address := range strings.SplitSeq(addresses, ";") {
		name, err := socketName(address)
		if err == nil {
			var dialer net.Dialer
			var conn net.Conn
			if conn, err = dialer.DialContext(ctx, "unix", name); err == nil {
				return conn.(*net.UnixConn), nil
			}
		}
		failed = append(failed, fmt.Errorf("cannot connect to the bus at %q: %w", address, err))
	}
	return nil, errors.Join(failed...)
}

// socketName is the socket of an address as the D-Bus specification writes
// them. Only Unix sockets pass descriptors.
func socketName(address string) (string, error) {
	rest, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return "", errors.New("it is no unix: address")
	}
	for pair := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		value, err := url.PathUnescape(value)
		switch {
		case err != nil:
			return "", err
		case key == "path":
			return value, nil
		case key == "abstract":
			return "@" + value, nil
		}
	}
	return "", errors.New("it has neither path nor abstract")
}
