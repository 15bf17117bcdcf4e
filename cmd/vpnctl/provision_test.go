package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/vpnprovider/vpnproviderd/driver/platform"
)

func TestProvisionCheck(t *testing.T) {
	b := newBench(t)
	b.service.Stop() // nobody needs it
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.toml", "app = 'com.example.Demo'\nname = 'Work'\nuser = 1000\nlockdown = true\n")
	out, errs := b.run(0, "provision", "check", good)
	if want := good + ": Work of app com.example.Demo for uid 1000, lockdown\n"; out != want || errs != "" {
		t.Errorf("%q, %q, want %q", out, errs, want)
	}
	if out, _ = b.run(0, "provision", "check", "--json", good); out != "[]\n" {
		t.Errorf("%q", out)
	}

	bad := write("bad.toml", "app = 'demo'\nuser = 'no such user'\nColour = 'red'\n")
	twice := write("twice.toml", "name = 'Work'\napp = 'com.example.Demo'\nuser = '1000'\n")
	none := filepath.Join(dir, "none.toml")
	out, errs = b.run(1, "provision", "check", bad, good, none, twice)
	contains(t, out, bad+":1: app: app id \"demo\" is not reverse-DNS", bad+":1: name: is missing\n",
		bad+":2: user: there is no user \"no such user\" here", bad+":3: Colour: there is no such key\n",
		none+":1: cannot open it: no such file", twice+":1: name: "+good+" has the same app, name and user", good+": Work of app")
	contains(t, errs, "vpnctl: problems found: 6\n")
	out, _ = b.run(1, "provision", "check", "--json", bad)
	var problems []platform.Problem
	if err := json.Unmarshal([]byte(out), &problems); err != nil || len(problems) != 4 || problems[3].Line != 3 || problems[3].Key != "Colour" {
		t.Errorf("%v: %s", err, out)
	}

	b.run(2, "provision", "check")
	b.run(2, "provision", "nonsense")
	if out, _ := b.run(0, "provision"); out == "" {
		t.Error("no help")
	}
	if out, _ := b.run(0, "__complete", "provision", "check", ""); out != "toml\n:8\n" {
		t.Errorf("%q", out)
	}
}
