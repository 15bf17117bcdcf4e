package container_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	alicePassword = "correct horse"
	bobPassword   = "battery staple"
)

// TestAnswers has real polkit agents answer, with real passwords: yes, no, not
// now, and never.
func TestAnswers(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap")
	b := newBoard(t, programs{daemon: container.Build(t, "./cmd/vpnproviderd"), client: container.Build(t, "./test/container/testuser")})
	b.Run(t, "sh", "-c", fmt.Sprintf("echo 'alice:%s' | chpasswd; echo 'bob:%s' | chpasswd; usermod -a -G sudo bob", alicePassword, bobPassword))
	b.front(b.alice)
	b.register(matrixApp)
	w := &answers{board: b, conn: b.alice.conns[1]}
	w.config, _ = b.config(matrixApp)
	w.agent = b.agent(b.alice, func(_ string, identities []string) (string, string) {
		if !slices.Equal(identities, []string{"alice"}) {
			t.Errorf("%q may answer, want Alice alone", identities)
		}
		password, _ := w.says.Load().(string)
		return "alice", password
	})
	for _, step := range []struct {
		name string
		run  func(*testing.T, *answers)
	}{
		{"no and not now", testRefused},
		{"never", testNever},
		{"polkitd ends", testPolkitEnds},
		{"polkitd hangs", testPolkitHangs},
		{"yes", testAgreed},
		{"administrator", testAdministrator},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(t, w) })
	}
}

type answers struct {
	*board
	conn   *godbus.Conn // of Alice, who calls
	agent  *agent
	config godbus.ObjectPath
	says   atomic.Value // a string: a password, or what else the agent does
}

func (w *answers) connect() <-chan *godbus.Call {
	return begin(w.conn, true, w.config, wire.ConfigInterface, "Connect", dict{})
}

// refused waits for an answer that is an error, with a text in it.
func (w *answers) refused(t *testing.T, done <-chan *godbus.Call, name, text string) {
	t.Helper()
	select {
	case c := <-done:
		if got := errorName(c.Err); got != name || !strings.Contains(c.Err.Error(), text) {
			t.Errorf("%s (%v), want %s with %q", got, c.Err, name, text)
		}
	case <-time.After(harness.Timeout):
		t.Errorf("no answer, want %s", name)
	}
}

// question waits until the agent is asked, for the app by name.
func (w *answers) question(t *testing.T) {
	t.Helper()
	if q := w.agent.await(t, "trust-provider: "); !strings.Contains(q, " "+matrixApp+" ") {
		t.Errorf("the question is %q", q)
	}
}

// await waits for a question that begins so.
func (a *agent) await(t *testing.T, begins string) string {
	t.Helper()
	select {
	case q := <-a.asked:
		if !strings.HasPrefix(q, begins) {
			t.Errorf("the question is %q", q)
		}
		return q
	case <-time.After(harness.Timeout):
		t.Fatal("nobody is asked")
		return ""
	}
}

// gone waits until the agent is told to take its question away.
func (a *agent) gone(t *testing.T) {
	t.Helper()
	select {
	case <-a.cancelled:
	case <-time.After(harness.Timeout):
		t.Error("the question stays on the screen")
	}
}

func testRefused(t *testing.T, w *answers) {
	t.Helper()
	for says, text := range map[string]string{"a wrong password": "does not allow", cancels: "dismissed"} {
		w.says.Store(says)
		done := w.connect()
		w.question(t)
		w.refused(t, done, "NotAuthorized", text)
	}
}

// testNever: whoever waits is cancelled by a Disconnect, or by leaving.
func testNever(t *testing.T, w *answers) {
	t.Helper()
	w.says.Store(never)
	done := w.connect()
	w.question(t)
	must(t, w.conn, wire.RootPath, wire.ManagerInterface, "ListConfigs")
	w.refused(t, w.connect(), "LimitExceeded", "being asked already")
	must(t, w.conn, w.config, wire.ConfigInterface, "Disconnect", dict{})
	w.refused(t, done, "Failed", "cancelled")
	w.agent.gone(t)

	leaving := w.user(container.Alice, remote(container.Alice), 2)
	asked := w.board.agent(leaving, func(string, []string) (string, string) { return "", never })
	begin(leaving.conns[1], true, w.config, wire.ConfigInterface, "Connect", dict{})
	asked.await(t, "connect: ")
	leaving.conns[1].Close()
	asked.gone(t)
	w.requireState(t, wire.StateIdle)
	// Its place among the prompts of the user is free again.
	w.says.Store(cancels)
	done = w.connect()
	w.question(t)
	w.refused(t, done, "NotAuthorized", "dismissed")
}

func (w *answers) requireState(t *testing.T, want string) {
	t.Helper()
	v := must(t, w.conn, w.config, wire.PropertiesInterface, "Get", wire.ConfigInterface, "State")[0].(godbus.Variant)
	if v.Value() != want {
		t.Errorf("the state is %v, want %s", v, want)
	}
}

// testPolkitEnds: in the middle of a question that is a no. systemd starts it
// again; the agent has to come back by itself, as desktops' do.
func testPolkitEnds(t *testing.T, w *answers) {
	t.Helper()
	w.says.Store(never)
	done := w.connect()
	w.question(t)
	w.Run(t, "systemctl", "kill", "--signal=KILL", "polkit")
	w.refused(t, done, "NotAuthorized", "polkit cannot be asked")
	w.requireState(t, wire.StateIdle)
	w.says.Store(alicePassword)
	var again chan *godbus.Call
	harness.Eventually(t, harness.Timeout, "polkit is back", func() error {
		c := <-w.connect()
		if errorName(c.Err) == "Timeout" {
			return c.Err
		}
		again = make(chan *godbus.Call, 1)
		again <- c
		return nil
	})
	w.refused(t, again, "NotAuthorized", "nobody can be asked")
	w.agent = w.board.agent(w.alice, w.agent.answer)
}

func testPolkitHangs(t *testing.T, w *answers) {
	t.Helper()
	w.Run(t, "systemctl", "kill", "--signal=STOP", "polkit")
	done := w.connect()
	must(t, w.conn, wire.RootPath, wire.ManagerInterface, "ListConfigs")
	if len(done) > 0 {
		t.Error("another call waits for polkit, too")
	}
	w.refused(t, done, "Timeout", "polkit did not answer")
	w.requireState(t, wire.StateIdle)
	w.Run(t, "systemctl", "kill", "--signal=CONT", "polkit")
}

// testAgreed: asked once, over a restart of the daemon too, until forgotten.
func testAgreed(t *testing.T, w *answers) {
	t.Helper()
	for len(w.agent.asked) > 0 {
		<-w.agent.asked
	}
	w.says.Store(alicePassword)
	done := w.connect()
	w.question(t)
	if c := <-done; c.Err != nil {
		t.Fatal(c.Err)
	}
	w.requireState(t, wire.StateConnecting)
	must(t, w.conn, w.config, wire.ConfigInterface, "Disconnect", dict{})
	if got := w.Run(t, "sh", "-c", "stat -c '%a %U' /var/lib/vpnprovider/consents/*; cat /var/lib/vpnprovider/consents/*"); !strings.HasPrefix(got, "600 vpnprovider\n") || !strings.Contains(got, matrixApp) {
		t.Errorf("the consents: %s", got)
	}
	w.Run(t, "systemctl", "restart", "vpnproviderd")
	w.register(matrixApp)
	must(t, w.conn, w.config, wire.ConfigInterface, "Connect", dict{})
	must(t, w.conn, wire.RootPath, wire.ManagerInterface, "ForgetProvider", matrixApp, dict{})
	w.config, _ = w.board.config(matrixApp)
	w.says.Store(cancels)
	done = w.connect()
	w.question(t)
	w.refused(t, done, "NotAuthorized", "dismissed")
}

// testAdministrator: over ssh, an administrator's password opens connect and
// the app, and no other user's does.
func testAdministrator(t *testing.T, w *answers) {
	t.Helper()
	ssh := w.user(container.Alice, remote(container.Alice), 1)
	w.says.Store(alicePassword)
	a := w.board.agent(ssh, func(_ string, identities []string) (string, string) {
		if !slices.Equal(identities, []string{"bob"}) {
			t.Errorf("%q may answer, want the administrator alone", identities)
		}
		password, _ := w.says.Load().(string)
		return "bob", password
	})
	w.conn = ssh.conns[0]
	w.refused(t, w.connect(), "NotAuthorized", "org.vpnprovider1.connect")
	w.says.Store(bobPassword)
	if c := <-w.connect(); c.Err != nil {
		t.Fatal(c.Err)
	}
	if got, want := a.questions(), []string{"connect", "connect", "trust-provider"}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	must(t, w.conn, w.config, wire.ConfigInterface, "Disconnect", dict{})
}
