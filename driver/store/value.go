package store

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
)

// value is one value of a config's data. It stands in the file with its D-Bus
// type, {"u": 1194}, so that it comes back as what it was.
type value struct{ any }

// Signatures of what data may hold, besides v-arrays and dictionaries.
func types() map[string]reflect.Type {
	scalars := map[string]reflect.Type{
		"s": reflect.TypeFor[string](), "b": reflect.TypeFor[bool](), "y": reflect.TypeFor[byte](),
		"n": reflect.TypeFor[int16](), "q": reflect.TypeFor[uint16](), "i": reflect.TypeFor[int32](),
		"u": reflect.TypeFor[uint32](), "x": reflect.TypeFor[int64](), "t": reflect.TypeFor[uint64](),
		"d": reflect.TypeFor[float64](),
	}
	all := make(map[string]reflect.Type, 2*len(scalars))
	for sig, t := range scalars {
		all[sig], all["a"+sig] = t, reflect.SliceOf(t)
	}
	return all
}

func (v value) MarshalJSON() ([]byte, error) {
	switch d := v.any.(type) {
	case map[string]any:
		inner := make(map[string]value, len(d))
		for key, e := range d {
			inner[key] = value{e}
		}
		return json.Marshal(map[string]any{"a{sv}": inner})
	case []any:
		inner := make([]value, len(d))
		for i, e := range d {
			inner[i] = value{e}
		}
		return json.Marshal(map[string]any{"av": inner})
	case float64:
		return json.Marshal(map[string]any{"d": float(d)})
	case []float64:
		inner := make([]float, len(d))
		for i, e := range d {
			inner[i] = float(e)
		}
		return json.Marshal(map[string]any{"ad": inner})
	}
	for sig, t := range types() {
		if reflect.TypeOf(v.any) == t {
			return json.Marshal(map[string]any{sig: v.any})
		}
	}
	return nil, fmt.Errorf("cannot keep a %T", v.any)
}

func (v *value) UnmarshalJSON(text []byte) error {
	var typed map[string]json.RawMessage
	if err := json.Unmarshal(text, &typed); err != nil {
		return err
	}
	if len(typed) != 1 {
		return fmt.Errorf("a value has %d types", len(typed))
	}
	for sig, raw := range typed {
		decoded, err := decode(sig, raw)
		if err != nil {
			return err
		}
		v.any = decoded
	}
	return nil
}

func decode(sig string, raw json.RawMessage) (any, error) {
	switch sig {
	case "a{sv}":
		var inner map[string]value
		if err := json.Unmarshal(raw, &inner); err != nil {
			return nil, err
		}
		out := make(map[string]any, len(inner))
		for key, e := range inner {
			out[key] = e.any
		}
		return out, nil
	case "av":
		var inner []value
		if err := json.Unmarshal(raw, &inner); err != nil {
			return nil, err
		}
		out := make([]any, len(inner))
		for i, e := range inner {
			out[i] = e.any
		}
		return out, nil
	case "d":
		var f float
		err := json.Unmarshal(raw, &f)
		return float64(f), err
	case "ad":
		var inner []float
		if err := json.Unmarshal(raw, &inner); err != nil {
			return nil, err
		}
		out := make([]float64, len(inner))
		for i, e := range inner {
			out[i] = float64(e)
		}
		return out, nil
	}
	t, ok := types()[sig]
	if !ok {
		return nil, fmt.Errorf("unknown type %q", sig)
	}
	into := reflect.New(t)
	if err := json.Unmarshal(raw, into.Interface()); err != nil {
		return nil, err
	}
	return into.Elem().Interface(), nil
}

// float stands in the file as text: JSON has neither NaN nor infinity.
type float float64

func (f float) MarshalText() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(f), 'g', -1, 64), nil
}

func (f *float) UnmarshalText(text []byte) error {
	d, err := strconv.ParseFloat(string(text), 64)
	*f = float(d)
	return err
}
