-- Append a version. KEYS: rules. ARGV: record as JSON, newest version that the caller knows ('' any).
local count = redis.call('LLEN', KEYS[1])
if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= count then
  return -count - 1
end
local record = cjson.decode(ARGV[1])
record.created_at = tonumber(redis.call('TIME')[1])
return redis.call('RPUSH', KEYS[1], cjson.encode(record))
