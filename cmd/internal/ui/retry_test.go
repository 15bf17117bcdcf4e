package ui

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := errors.New("other")
		answers := []error{client.ErrNotRunning, fmt.Errorf("set parameters: %w", client.ErrTimeout), other}
		var said []string
		say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
		calls := 0
		err := Retry(t.Context(), say, func(context.Context) error {
			calls++
			return answers[calls-1]
		})
		if !errors.Is(err, other) || calls != 3 {
			t.Errorf("%v after %d calls", err, calls)
		}
		if want := []string{"vpnproviderd is not running; trying again"}; !slices.Equal(said, want) {
			t.Errorf("said %q, want %q", said, want)
		}
	})
}

func TestRetryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*retryTime)
		defer cancel()
		calls := 0
		err := Retry(ctx, func(string, ...any) {}, func(context.Context) error {
			calls++
			return client.ErrTimeout
		})
		if !errors.Is(err, client.ErrTimeout) || calls < 9 || calls > 11 {
			t.Errorf("%v after %d calls", err, calls)
		}
	})
}
