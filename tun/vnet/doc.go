// Package vnet is the arithmetic of segmentation offload. The kernel and the
// programs that know it move many packets of a flow as one super-packet: the
// headers once, all payload behind, and a virtio_net_hdr before it that says
// how long the payload of each packet is.
//
//	message       virtio_net_hdr, 10 B │ IP │ TCP or UDP │ payload, ≤ 64 KiB
//	packets                              IP │ TCP or UDP │ payload
//	                                     IP │ TCP or UDP │ payload …
//
// A Packet is a message that was looked at: Packet.Parse reads one of the
// kernel's, Packet.Check one of somebody who is not trusted. Packet.Segment
// makes the packets of it, a Coalescer makes super-packets of packets. Both
// work on headers alone and leave the payload where it is, for system calls
// that gather.
//
// Values of this package belong to one goroutine at a time. Nothing here
// allocates, but for the memory that NewCoalescer makes.
package vnet
