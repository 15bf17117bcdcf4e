package dbuspolicy

import (
	"encoding/xml"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

type rule struct {
	Attrs []xml.Attr `xml:",any,attr"`
}

func (r rule) get(name string) string {
	for _, a := range r.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// TestPolicyMatchesContract: every method of the contract has its rule, and
// nothing else has one.
func TestPolicyMatchesContract(t *testing.T) {
	text, err := os.ReadFile("org.vpnprovider1.conf")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Policies []struct {
			Context string `xml:"context,attr"`
			Allow   []rule `xml:"allow"`
			Deny    []rule `xml:"deny"`
		} `xml:"policy"`
	}
	if err := xml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range config.Policies {
		if p.Context != "default" {
			continue
		}
		for _, r := range append(p.Allow, p.Deny...) {
			if r.get("send_destination") != wire.BusName {
				t.Errorf("a rule for every user has another destination: %v", r.Attrs)
			}
		}
		for _, r := range p.Allow {
			got = append(got, r.get("send_interface")+"."+r.get("send_member"))
		}
	}
	slices.Sort(got)
	if want := methods(t); !slices.Equal(got, want) {
		t.Errorf("the policy lists\n%s\nthe contract has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestDescriptorMethods: those that may be sent a descriptor are those that
// take one.
func TestDescriptorMethods(t *testing.T) {
	interfaces, err := wire.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for name, i := range interfaces {
		for _, m := range i.Methods {
			if strings.Contains(m.In(), "h") {
				got = append(got, name+"."+m.Name)
			}
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, descriptorMethods) {
		t.Errorf("got %q, want %q", got, descriptorMethods)
	}
}

// TestActivation: the bus starts the daemon through systemd or not at all.
func TestActivation(t *testing.T) {
	text, err := os.ReadFile("org.vpnprovider1.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"[D-BUS Service]", "Name=" + wire.BusName, "Exec=/bin/false", "User=" + serviceUser, "SystemdService=vpnproviderd.service",
	} {
		if !slices.Contains(strings.Split(string(text), "\n"), want) {
			t.Errorf("no line %q", want)
		}
	}
	if _, err := os.Stat("../systemd/vpnproviderd.service"); err != nil {
		t.Error(err)
	}
}
