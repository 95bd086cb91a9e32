package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/vmm"
)

var update = flag.Bool("update", false, "write docs/openapi.json anew")

// operation says of a resource what the code cannot.
type operation struct {
	summary     string
	body        any // nil: none
	answer      any // nil: 204, no body
	watchable   bool
	description string
}

var operations = map[string]operation{
	"GET /{$}":                             {summary: "Who answers here, and in which state", answer: InstanceInfo{}},
	"GET /vm/info":                         {summary: "The machine's state and figures", answer: Info{}},
	"PATCH /vm":                            {summary: "Pause or resume the guest", body: VMUpdate{}},
	"PUT /actions":                         {summary: "End the guest as if its power were cut", body: Action{}},
	"GET /balloon":                         {summary: "The balloon's configuration as it now is", answer: vmm.Balloon{}},
	"PATCH /balloon":                       {summary: "Ask the guest for a balloon of another size", body: BalloonUpdate{}},
	"GET /balloon/statistics":              {summary: "What the guest said of its memory", answer: BalloonStats{}},
	"PATCH /balloon/statistics":            {summary: "Change how often the guest is asked for its figures", body: BalloonStatsUpdate{}},
	"PATCH /network-interfaces/{iface_id}": {summary: "Plug the cable of a network card in, or pull it", body: NetworkUpdate{}},
	"PATCH /consoles/{id}":                 {summary: "Tell the guest how large its console is", body: ConsoleUpdate{}},
	"GET /migration":                       {summary: "How the last migration stands", answer: MigrationStatus{}, watchable: true},
	"PUT /migration": {summary: "Start a migration, or save the machine in a file", body: MigrationRequest{}, watchable: true,
		description: "Answers 204 as soon as the migration has started. With watch=1 it answers 200 and a MigrationStatus a line until the migration has ended."},
	"PATCH /migration":  {summary: "Retune the migration under way", body: MigrationUpdate{}},
	"DELETE /migration": {summary: "Cancel the migration: the guest runs on here", description: "Answers when the migration has ended. 409 after the point of no return."},
}

type object = map[string]any

// TestOpenAPI holds docs/openapi.json to the code: the resources are those that the
// server has, the fields those of the Go types, their descriptions the comments there.
// go test ./api -run OpenAPI -update writes it.
func TestOpenAPI(t *testing.T) {
	s := &schemas{t: t, found: object{}, comments: map[string]map[string]string{}}
	fault := object{"description": "Refused: 400 for a request that is wrong in itself, 404 for what the machine does not have, 405 for a wrong method, 409 where its state forbids it.",
		"content": object{"application/json": object{"schema": s.of(reflect.TypeFor[Fault]())}}}
	paths := object{}
	resources := (&Server{}).resources()
	for pattern := range resources {
		op, ok := operations[pattern]
		require.True(t, ok, "describe %s above", pattern)
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.TrimSuffix(path, "{$}")
		out := object{"summary": op.summary, "responses": object{"default": fault}}
		if op.description != "" {
			out["description"] = op.description
		}
		var parameters []object
		for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
			parameters = append(parameters, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
		}
		if op.watchable {
			parameters = append(parameters, object{"name": "watch", "in": "query", "schema": object{"type": "string", "enum": []string{"1"}},
				"description": "1: answer with one MigrationStatus a line (application/x-ndjson) at each change and at least 5 a second, until the migration has ended."})
		}
		if parameters != nil {
			out["parameters"] = parameters
		}
		if op.body != nil {
			out["requestBody"] = object{"required": true, "content": object{"application/json": object{"schema": s.of(reflect.TypeOf(op.body))}}}
		}
		responses := out["responses"].(object)
		if op.answer == nil {
			responses["204"] = object{"description": "Done."}
		}
		content := object{}
		if op.answer != nil {
			content["application/json"] = object{"schema": s.of(reflect.TypeOf(op.answer))}
		}
		if op.watchable {
			content["application/x-ndjson"] = object{"schema": s.of(reflect.TypeFor[MigrationStatus]())}
		}
		if len(content) > 0 {
			responses["200"] = object{"description": "The answer.", "content": content}
		}
		at, ok := paths[path].(object)
		if !ok {
			at = object{}
			paths[path] = at
		}
		at[strings.ToLower(method)] = out
	}
	require.Len(t, operations, len(resources), "an operation is described that the server does not have")
	doc := object{
		"openapi": "3.0.3",
		"info": object{"title": "godwit", "version": "1",
			"description": "REST over the unix socket of --api-sock or --name, in Firecracker's shapes where Firecracker has them. docs/api.md has examples."},
		"servers":    []object{{"url": "http://localhost", "description": "over the unix socket, as in curl --unix-socket vm.sock http://localhost/"}},
		"paths":      paths,
		"components": object{"schemas": s.found},
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	require.NoError(t, enc.Encode(doc))
	file := filepath.Join("..", "docs", "openapi.json")
	if *update {
		require.NoError(t, os.WriteFile(file, text.Bytes(), 0o644))
	}
	have, err := os.ReadFile(file)
	require.NoError(t, err)
	for i, line := range strings.Split(text.String(), "\n") {
		had := strings.Split(string(have), "\n")
		require.Less(t, i, len(had), "%s is shorter than the API; go test ./api -run OpenAPI -update", file)
		require.Equal(t, had[i], line, "line %d of %s; go test ./api -run OpenAPI -update", i+1, file)
	}
}

// schemas collects the JSON schemas of Go types.
type schemas struct {
	t        *testing.T
	found    object                       // by type name
	comments map[string]map[string]string // package path: "Type" or "Type.Field": comment
}

// of is the schema of a type, named types as references.
func (s *schemas) of(typ reflect.Type) object {
	switch {
	case typ == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case typ.Kind() == reflect.Pointer:
		return s.of(typ.Elem())
	}
	switch typ.Kind() {
	case reflect.Struct:
		name := typ.Name()
		if pkg := filepath.Base(typ.PkgPath()); pkg != "api" {
			name = pkg + "." + name
		}
		if _, ok := s.found[name]; !ok {
			s.found[name] = nil // so that a type may hold itself
			s.found[name] = s.structure(typ)
		}
		return object{"$ref": "#/components/schemas/" + name}
	case reflect.Slice, reflect.Array:
		if typ.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "format": "byte"}
		}
		return object{"type": "array", "items": s.of(typ.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(typ.Elem())}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	}
	s.t.Fatalf("no schema for %v", typ)
	return nil
}

func (s *schemas) structure(typ reflect.Type) object {
	properties := object{}
	var required []string
	var add func(typ reflect.Type)
	add = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous && name == "" {
				add(f.Type)
				continue
			}
			if !f.IsExported() || name == "-" {
				continue
			}
			require.NotEmpty(s.t, name, "%v.%s has no name in JSON", typ, f.Name)
			p := s.of(f.Type)
			if text := s.comment(typ, f.Name); text != "" {
				if ref, ok := p["$ref"]; ok { // siblings of $ref are ignored in OpenAPI 3.0
					p = object{"allOf": []object{{"$ref": ref}}}
				}
				p["description"] = text
			}
			properties[name] = p
			if !strings.Contains(options, "omitempty") && f.Type.Kind() != reflect.Pointer {
				required = append(required, name)
			}
		}
	}
	add(typ)
	out := object{"type": "object", "properties": properties}
	if text := s.comment(typ, ""); text != "" {
		out["description"] = text
	}
	if slices.Sort(required); required != nil {
		out["required"] = required
	}
	return out
}

// comment is the Go comment of a type or of its field.
func (s *schemas) comment(typ reflect.Type, field string) string {
	pkg := typ.PkgPath()
	if s.comments[pkg] == nil {
		s.comments[pkg] = s.parse(filepath.Join("..", strings.TrimPrefix(pkg, "godwit/")))
	}
	if field == "" {
		return s.comments[pkg][typ.Name()]
	}
	return s.comments[pkg][typ.Name()+"."+field]
}

func (s *schemas) parse(dir string) map[string]string {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(s.t, err)
	out := map[string]string{}
	set := token.NewFileSet()
	for _, name := range files {
		file, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		require.NoError(s.t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			d, ok := n.(*ast.GenDecl)
			if !ok || d.Tok != token.TYPE {
				return true
			}
			for _, spec := range d.Specs {
				typ := spec.(*ast.TypeSpec)
				doc := typ.Doc
				if doc == nil && len(d.Specs) == 1 {
					doc = d.Doc
				}
				out[typ.Name.Name] = flat(doc.Text())
				fields, ok := typ.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, f := range fields.Fields.List {
					for _, id := range f.Names {
						out[typ.Name.Name+"."+id.Name] = flat(f.Doc.Text() + " " + f.Comment.Text())
					}
				}
			}
			return true
		})
	}
	return out
}

func flat(text string) string { return strings.Join(strings.Fields(text), " ") }
