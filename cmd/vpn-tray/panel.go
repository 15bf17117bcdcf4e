package main

import (
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/icon"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/sni"
)

// topRows is how many VPNs stand in the menu itself; the others are in a
// submenu.
const topRows = 15

// picture is what the panel shows of a view. clicked is called for each click.
func picture(v model.View, clicked func(model.Action)) sni.State {
	line := func(item model.Item) sni.Entry {
		return sni.Entry{
			Label: item.Label, Key: item.Action.Target, Disabled: !item.Enabled, Checked: item.Checked,
			Click: func() { clicked(item.Action) },
		}
	}
	lines := func(items []model.Item, checkable bool) (all []sni.Entry) {
		for _, item := range items {
			e := line(item)
			e.Checkable = checkable
			all = append(all, e)
		}
		return all
	}
	button := func(label string, verb model.Verb) sni.Entry {
		return line(model.Item{Label: label, Enabled: true, Action: model.Action{Verb: verb}})
	}

	menu := []sni.Entry{{Label: v.Status, Disabled: true}}
	for _, problem := range v.Problems {
		menu = append(menu, sni.Entry{Label: problem, Disabled: true})
	}
	configs := lines(v.Configs, true)
	top := min(len(configs), topRows)
	menu = append(menu, configs[:top]...)
	submenu := func(label string, entries []sni.Entry) {
		if len(entries) > 0 {
			menu = append(menu, sni.Entry{Label: label, Children: entries})
		}
	}
	submenu("More", configs[top:])
	if v.Retry {
		menu = append(menu, button("Start the VPN service", model.Retry))
	}
	if v.Unlock {
		menu = append(menu, button("End the lockdown", model.Unlock))
	}
	menu = append(menu, sni.Entry{Separator: true})
	submenu("Add", lines(v.Add, false))
	submenu("Settings", lines(v.Settings, false))
	menu = append(menu, button("Quit", model.Quit))
	return sni.State{Icon: icon.Sizes(v.Icon), Tip: v.Status, Menu: menu}
}
