package driver_test

import (
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver"
)

var (
	wired    = driver.Uplink{Interface: "eth0", Index: 2, Gateway: netip.MustParseAddr("192.0.2.1")}
	rerouted = driver.Uplink{Interface: "eth0", Index: 2, Gateway: netip.MustParseAddr("192.0.2.254")}
	wireless = driver.Uplink{Interface: "wlan0", Index: 3, Gateway: netip.MustParseAddr("198.51.100.1")}
	none     driver.Uplink
)

// online is a connected session over the wire, with reconnect or without.
func online(t *testing.T, reconnect bool) (*bench, driver.SessionID, map[string]any) {
	t.Helper()
	b := newBench(t)
	b.SetUplink(wired)
	s := b.connect(b.work)
	p := maps.Clone(dictionary)
	p["reconnect"] = reconnect
	if _, err := b.SetParameters(t.Context(), provider, s, p); err != nil {
		t.Fatal(err)
	}
	b.notify(s)
	b.Log()
	return b, s, p
}

func TestUplinkWithReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s, p := online(t, true)
		reconnecting := []string{"session 1: reconnecting", `config Work: reconnecting session 1 ""`}
		again := func() {
			t.Helper()
			if _, err := b.SetParameters(t.Context(), provider, s, p); err != nil {
				t.Fatal(err)
			}
			b.state(driver.Connected, "") // and no other word of the provider
			b.Log()
		}
		expect := func(message string) {
			t.Helper()
			want := append([]string{"session 1: " + string(b.Sessions(ui)[0].State)}, reconnecting...)
			if message != "" {
				want = append(want, ":1.1 gets "+message+` "" of session 1`)
			}
			log := b.Log()
			if len(log) != len(want) || log[len(log)-1] != want[len(want)-1] {
				t.Errorf("observed %q, want the last of %q", log, want)
			}
			b.state(driver.Reconnecting, "")
		}
		b.SetUplink(none)
		expect("linkDown")
		time.Sleep(time.Hour) // there is no timer without an uplink
		b.SetUplink(wired)
		expect("linkUp")
		again()
		b.SetUplink(wireless)
		expect("linkChanged")
		again()
		b.SetUplink(none)
		expect("linkDown")
		again() // over what is left, a cable of its own perhaps
		b.SetUplink(wireless)
		expect("linkUp")
		b.SetUplink(none)
		expect("linkDown")
		b.SetUplink(wired)
		expect("linkUp")
		time.Sleep(5 * time.Minute) // and then there is one
		synctest.Wait()
		b.state(driver.Failed, "connection timed out")
		b.clean()
	})
}

// The timer begins anew with each change, and only way and gateway count.
func TestUplinkChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, _ := online(t, true)
		renamed := wired
		renamed.Nameservers = []netip.Addr{netip.MustParseAddr("192.0.2.53")}
		b.SetUplink(renamed)
		b.state(driver.Connected, "")
		if u := b.Sessions(ui)[0].Uplink; len(u.Nameservers) != 1 {
			t.Errorf("uplink %+v", u)
		}
		for range 3 {
			b.SetUplink(rerouted)
			time.Sleep(4 * time.Minute)
			b.SetUplink(wired)
			time.Sleep(4 * time.Minute)
		}
		b.state(driver.Reconnecting, "")
		b.Shutdown()
	})
}

func TestUplinkWithoutReconnect(t *testing.T) {
	for name, next := range map[string]driver.Uplink{"lost": none, "replaced": wireless, "another gateway": rerouted} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, _, _ := online(t, false)
				b.SetUplink(next)
				synctest.Wait()
				b.state(driver.Failed, "underlying network disconnected")
				b.clean()
			})
		})
	}
}

func TestUplinkWhileConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.connect(b.work)
		b.SetUplink(wired)
		b.state(driver.Connecting, "")
		b.SetUplink(none)
		synctest.Wait()
		b.state(driver.Failed, "underlying network disconnected")
		b.clean()
	})
}

// The machine sleeps when the provider is ready for it, or after three
// seconds.
func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s, p := online(t, true)
		start := time.Now()
		<-b.Sleep()
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("without an answer sleep waits %s", took)
		}
		b.state(driver.Connected, "")
		b.Wake()
		b.state(driver.Reconnecting, "")
		if _, err := b.SetParameters(t.Context(), provider, s, p); err != nil {
			t.Fatal(err)
		}
		ready := b.Sleep()
		if err := b.Acknowledge(provider, s, "resume"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if err := b.Acknowledge(provider, s, "suspend"); err != nil {
			t.Error(err)
		}
		start = time.Now()
		<-ready
		if took := time.Since(start); took != 0 {
			t.Errorf("after the answer sleep waits %s", took)
		}
		if err := b.Acknowledge(provider, s, "suspend"); err != nil {
			t.Errorf("nothing to acknowledge: %v", err)
		}
		b.Shutdown()
	})
}

// A machine that wakes without an uplink has no time limit, until it is back.
func TestWakeWithoutUplink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, _ := online(t, true)
		b.SetUplink(none)
		<-b.Sleep()
		b.Wake()
		time.Sleep(time.Hour)
		b.state(driver.Reconnecting, "")
		b.SetUplink(wired)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		b.state(driver.Failed, "connection timed out")
		b.clean()
	})
}

// Parameters that were begun before the provider was told that the network below
// is another one hold, but are not its answer to that.
func TestParametersBegunBefore(t *testing.T) {
	for name, change := range map[string]func(*bench){
		"replaced": func(b *bench) { b.SetUplink(wireless) },
		"replaced while reconnecting": func(b *bench) {
			b.SetUplink(wireless)
			b.SetUplink(wired)
		},
		"lost and back": func(b *bench) {
			b.SetUplink(none)
			b.SetUplink(wired)
		},
		"slept": func(b *bench) {
			b.Sleep()
			b.Wake()
		},
	} {
		for _, begun := range []driver.State{driver.Connected, driver.Reconnecting} {
			t.Run(name+" in "+string(begun), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b, s, p := online(t, true)
					if begun == driver.Reconnecting {
						b.SetUplink(rerouted)
						time.Sleep(time.Minute)
					}
					release := b.Hold("apply")
					done := make(chan error, 2) // the second one waits for the first
					for range cap(done) {
						go func() {
							former := maps.Clone(p)
							former["mtu"] = "1400"
							_, err := b.SetParameters(t.Context(), provider, s, former)
							done <- err
						}()
					}
					synctest.Wait()
					change(b)
					release()
					for range cap(done) {
						if err := <-done; err != nil {
							t.Error(err)
						}
					}
					b.state(driver.Reconnecting, "")
					if mtu := b.Sessions(ui)[0].Parameters.MTU; mtu != 1400 {
						t.Errorf("the MTU is %d", mtu)
					}
					time.Sleep(5*time.Minute - 1) // and the timer goes on
					b.state(driver.Reconnecting, "")
					if _, err := b.SetParameters(t.Context(), provider, s, p); err != nil {
						t.Error(err)
					}
					b.state(driver.Connected, "")
					time.Sleep(time.Hour)
					b.state(driver.Connected, "")
					b.Shutdown()
				})
			})
		}
	}
}

// The timer that late parameters leave alone ends the session.
func TestLateParametersKeepTheTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s, p := online(t, true)
		release := b.Hold("apply")
		done := make(chan error)
		go func() {
			_, err := b.SetParameters(t.Context(), provider, s, p)
			done <- err
		}()
		synctest.Wait()
		b.SetUplink(wireless)
		time.Sleep(time.Second)
		release()
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(5*time.Minute - time.Second)
		synctest.Wait()
		b.state(driver.Failed, "connection timed out")
		b.clean()
	})
}

// Only a message that asks for parameters makes those late that are under way,
// and only while the app is told of the uplink at all.
func TestParametersInTime(t *testing.T) {
	for name, tt := range map[string]struct {
		reconnect bool
		meanwhile func(*bench)
	}{
		"suspend":           {true, func(b *bench) { b.Sleep() }},
		"without reconnect": {false, func(b *bench) { b.SetUplink(none) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, s, p := online(t, true)
				b.SetUplink(wireless)
				release := b.Hold("apply")
				done := make(chan error)
				go func() {
					p["reconnect"] = tt.reconnect
					_, err := b.SetParameters(t.Context(), provider, s, p)
					done <- err
				}()
				synctest.Wait()
				tt.meanwhile(b)
				release()
				if err := <-done; err != nil {
					t.Error(err)
				}
				b.state(driver.Connected, "")
				b.Shutdown()
			})
		})
	}
}

func TestSleepWithoutReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, _ := online(t, false)
		start := time.Now()
		<-b.Sleep()
		b.Wake()
		if time.Since(start) != 0 {
			t.Error("sleep waits")
		}
		b.observed()
		b.state(driver.Connected, "")
		b.Shutdown()
		<-b.Sleep()
		b.Wake()
	})
}
