// Command web is the demo's web server: it answers with the address that the
// request came from, and logs the same.
package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	server := &http.Server{
		Addr:              ":80",
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			remote, _, err := net.SplitHostPort(r.RemoteAddr)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			fmt.Printf("request for http://%s%s from %s\n", r.Host, r.URL.Path, remote)
			fmt.Fprintf(w, "hello, %s\n", remote)
		}),
	}
	slog.New(slog.NewTextHandler(os.Stderr, nil)).Error("cannot serve", "error", server.ListenAndServe())
	os.Exit(1)
}
