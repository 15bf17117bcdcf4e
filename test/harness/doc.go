// Package harness holds what system tests stand on: network namespaces, a
// private message bus, the daemon, processes of unprivileged users, packet
// counters, real VPN, DNS and web servers, and snapshots of a host's network
// state.
//
// Nothing here touches the network, the name resolution, the file system
// outside a temporary directory, or the buses of the machine it runs on.
// A namespace has no name: it belongs to a thread of the test process, which
// ends with it, and every process started in it is killed by the kernel when
// that thread ends. So also a test that is killed leaves nothing running.
//
// Helpers take the test's t and end the test when they cannot do what they
// were asked; those that return an error leave that to the caller. What a helper
// makes is undone when the test ends, in reverse order, and the output of the
// processes is shown when the test failed.
package harness
