// Package client is the Go library for VPN apps and user interfaces on
// vpnproviderd.
package client
