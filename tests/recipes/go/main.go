// The Go recipe of docs/contract.md in a program: tests/recipes.rs puts it where the comment says so.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
)

func main() {
	address, registry, snapshot, id := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	ctx := context.Background()
	c, err := client.Dial(client.Options{HostPort: address, Namespace: "default"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	defer c.Close()

	// the recipe

	var failed *temporal.ApplicationError
	if errors.As(err, &failed) {
		fmt.Println(failed.Type())
		os.Exit(1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	fmt.Println(result["status"])
}
