package client

import (
	"fmt"
	"net/netip"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// dict is an options dictionary (a{sv}) under construction.
type dict map[string]godbus.Variant

// set adds a value of a type that D-Bus has.
func (d dict) set(key string, value any) { d[key] = godbus.MakeVariant(value) }

// encodeDict makes a{sv} of plain Go values.
func encodeDict(values map[string]any) (dict, error) {
	d := make(dict, len(values))
	for key, value := range values {
		v, err := encode(value)
		if err != nil {
			return nil, fmt.Errorf("cannot encode %q: %w", key, err)
		}
		d[key] = v
	}
	return d, nil
}

func encode(value any) (godbus.Variant, error) {
	switch v := value.(type) {
	case bool, string, byte, int16, uint16, int32, uint32, int64, uint64, float64, []byte, []string, map[string]string:
		return godbus.MakeVariant(v), nil
	case int:
		return godbus.MakeVariant(int64(v)), nil
	case uint:
		return godbus.MakeVariant(uint64(v)), nil
	case float32:
		return godbus.MakeVariant(float64(v)), nil
	case []any:
		list := make([]godbus.Variant, 0, len(v))
		for i, item := range v {
			e, err := encode(item)
			if err != nil {
				return godbus.Variant{}, fmt.Errorf("item %d: %w", i, err)
			}
			list = append(list, e)
		}
		return godbus.MakeVariant(list), nil
	case map[string]any:
		d, err := encodeDict(v)
		return godbus.MakeVariant(map[string]godbus.Variant(d)), err
	default:
		return godbus.Variant{}, fmt.Errorf("type %T has no D-Bus form here", value)
	}
}

// plain takes the variants and object paths out of a received value.
func plain(value any) any {
	switch v := value.(type) {
	case godbus.Variant:
		return plain(v.Value())
	case godbus.ObjectPath:
		return string(v)
	case []godbus.Variant:
		list := make([]any, 0, len(v))
		for _, item := range v {
			list = append(list, plain(item))
		}
		return list
	case []any: // a struct, or an array of structs' elements
		list := make([]any, 0, len(v))
		for _, item := range v {
			list = append(list, plain(item))
		}
		return list
	case [][]any:
		list := make([]any, 0, len(v))
		for _, item := range v {
			list = append(list, plain(item))
		}
		return list
	case map[string]godbus.Variant:
		return plainDict(v)
	default:
		return v
	}
}

func plainDict(values map[string]godbus.Variant) map[string]any {
	d := make(map[string]any, len(values))
	for key, value := range values {
		d[key] = plain(value)
	}
	return d
}

// properties is what GetAll, InterfacesAdded or PropertiesChanged brought. A
// missing key or a type of a later version leaves the destination alone.
type properties map[string]godbus.Variant

func get[T any](p properties, key string, to *T) {
	if v, ok := p[key]; ok {
		if value, ok := v.Value().(T); ok {
			*to = value
		}
	}
}

// path reads an object path; "/" (none) becomes "".
func (p properties) path(key string, to *string) {
	var v godbus.ObjectPath
	get(p, key, &v)
	if v != "" {
		*to = pathOrNone(v)
	}
}

// time reads microseconds since the epoch; 0 is the zero time.
func (p properties) time(key string, to *time.Time) {
	var micro uint64
	if _, ok := p[key]; !ok {
		return
	}
	get(p, key, &micro)
	if *to = (time.Time{}); micro != 0 {
		*to = time.UnixMicro(int64(micro))
	}
}

func (p properties) prefixes(key string, to *[]netip.Prefix) {
	list(p, key, to, parsePrefix)
}

func (p properties) addrs(key string, to *[]netip.Addr) {
	list(p, key, to, netip.ParseAddr)
}

// list parses each string of an array; what does not parse is left out.
func list[T any](p properties, key string, to *[]T, parse func(string) (T, error)) {
	var texts []string
	if _, ok := p[key]; !ok {
		return
	}
	get(p, key, &texts)
	*to = make([]T, 0, len(texts))
	for _, text := range texts {
		if v, err := parse(text); err == nil {
			*to = append(*to, v)
		}
	}
}

// parsePrefix takes a bare address as that host.
func parsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

func pathOrNone(p godbus.ObjectPath) string {
	if p == "/" {
		return ""
	}
	return string(p)
}

func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, 0, len(values))
	for _, v := range values {
		out = append(out, v.String())
	}
	return out
}
